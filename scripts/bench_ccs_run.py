"""How long the whole of ``probing ccs`` takes, and the most memory that it takes, on statements made from small tables.

    python scripts/bench_ccs_run.py --model FOLDER --out NEW_FOLDER [--pairs 600] [--places resid_post:4..5]

All other options are the defaults. The statements are written to NEW_FOLDER/statements.jsonl, which ``probing ccs
--data`` reads, and the results to NEW_FOLDER/found. One JSON line is printed, and appended to --record.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bench import facts
from measuring import status_bytes

CAPITALS = (
    "France Paris,Italy Rome,Spain Madrid,Portugal Lisbon,Germany Berlin,Austria Vienna,Poland Warsaw,Hungary Budapest,"
    "Greece Athens,Norway Oslo,Sweden Stockholm,Finland Helsinki,Denmark Copenhagen,Ireland Dublin,Belgium Brussels,"
    "Bulgaria Sofia,Romania Bucharest,Serbia Belgrade,Croatia Zagreb,Ukraine Kyiv,Russia Moscow,Turkey Ankara,"
    "Egypt Cairo,Morocco Rabat,Kenya Nairobi,Ghana Accra,Senegal Dakar,Algeria Algiers,Tunisia Tunis,Uganda Kampala,"
    "Japan Tokyo,China Beijing,India Delhi,Thailand Bangkok,Vietnam Hanoi,Nepal Kathmandu,Iran Tehran,Iraq Baghdad,"
    "Canada Ottawa,Jamaica Kingston,Cuba Havana,Peru Lima,Chile Santiago,Brazil Brasilia,Uruguay Montevideo,"
    "Ecuador Quito,Venezuela Caracas,Colombia Bogota,Australia Canberra,Cyprus Nicosia"
)
ANIMALS = {
    "bird": "sparrow eagle penguin parrot robin swan ostrich pigeon falcon heron crow stork",
    "fish": "salmon trout tuna herring carp cod pike sardine mackerel perch flounder haddock",
    "mammal": "horse whale dolphin tiger rabbit squirrel bat giraffe badger otter walrus kangaroo",
    "reptile": "crocodile tortoise gecko cobra viper iguana chameleon python lizard rattlesnake alligator turtle",
    "insect": "beetle butterfly wasp mosquito cricket ladybird dragonfly grasshopper moth cockroach termite bee",
}
Row = dict[str, Any]


def _row(statement: str, opposite: str, label: bool, category: str, formulation: str) -> Row:
    return {
        "statement": statement,
        "opposite": opposite,
        "label": label,
        "category": category,
        "formulation": formulation,
    }


def _negated(start: str, end: str, label: bool, category: str) -> Row:
    return _row(f"{start} is {end}.", f"{start} is not {end}.", label, category, "negation")


def capitals() -> Iterator[Row]:
    """Of each country its own capital and that of another one."""
    pairs = [pair.split() for pair in CAPITALS.split(",")]
    for at, (country, city) in enumerate(pairs):
        yield _negated(f"The capital of {country}", city, True, "capitals")
        yield _negated(f"The capital of {country}", pairs[at - 7][1], False, "capitals")


def animals() -> Iterator[Row]:
    """Of each animal its own class and another one."""
    kinds = list(ANIMALS)
    for at, (kind, names) in enumerate(ANIMALS.items()):
        for number, name in enumerate(names.split()):
            other = kinds[(at + 1 + number % 4) % len(kinds)]
            for label, said in ((True, kind), (False, other)):
                yield _negated(f"{_article(name)} {name}", f"{_article(said).lower()} {said}", label, "animals")


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def sums() -> Iterator[Row]:
    """Sums of different numbers, every other one wrong by one to nine."""
    for number in range(10_000):
        first, second, label = 3 + number // 40, 2 + number % 40, number % 2 == 0
        total = first + second + (0 if label else 1 + number % 9)
        yield _negated(f"The sum of {first} and {second}", str(total), label, "sums")


def sizes() -> Iterator[Row]:
    """Which of two numbers is larger; the opposite says smaller."""
    for number in range(10_000):
        smaller, larger, label = 4 + number // 30, 1000 + 7 * (number % 30), number % 2 == 0
        first, second = (larger, smaller) if label else (smaller, larger)
        yield _row(f"{first} is larger than {second}.", f"{first} is smaller than {second}.", label, "sizes", "antonym")


def statements(count: int) -> list[Row]:
    """So many different pairs of a statement and its opposite, the kinds about equally frequent, half of them true.

    Raises:
        ValueError: more than the tables give.
    """
    parts = [capitals(), animals(), sums(), sizes()]
    found: list[Row] = []
    while parts and len(found) < count:
        taken = [(part, list(islice(part, 2))) for part in parts]
        found += [row for _, rows in taken for row in rows]
        parts = [part for part, rows in taken if rows]
    if len(found) < count:
        raise ValueError(f"the tables give {len(found)} pairs, not {count}")
    return [{"id": f"pair-{at}", **row} for at, row in enumerate(found[:count])]


def run_ccs(model: str, out: Path, pairs: int, places: str) -> Row:
    """The whole of ``probing ccs`` in this process."""
    from probing.runs.ccs import run
    from probing.runs.ccs.config import CCSConfig

    out.mkdir(parents=True)
    data = out / "statements.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in statements(pairs)), encoding="utf-8")
    began = time.perf_counter()
    run(CCSConfig(data=str(data), out=out / "found", model=model, places=places))
    seconds = time.perf_counter() - began
    summary = json.loads((out / "found" / "summary.json").read_text(encoding="utf-8"))
    return {
        "bench": "ccs",
        "figure": "probing ccs with its defaults: wall time and peak memory of the process",
        "model": Path(model).name,
        "pairs": summary["pairs"],
        "places": len(summary["places"]),
        "probes_trained": summary["probes_trained"],
        "seconds": round(seconds, 1),
        "peak_mb": round(status_bytes("VmHWM") / 2**20),
    }


def main() -> None:
    """Read the command line, run, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--out", required=True, type=Path, help="a new folder")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--places", default="resid_post:all", help="as for probing ccs")
    parser.add_argument("--record", type=Path, help="append the line to this file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    line = json.dumps({**run_ccs(options.model, options.out, options.pairs, options.places), **facts(device)})
    print(line)
    if options.record:
        with options.record.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
