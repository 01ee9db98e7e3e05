"""Nine minutes on a bare CUDA card turned into figures; every line is JSON, printed at once.

    python3 scripts/on_card.py [--wheels FOLDER] [--out card-out] [--minutes 9]
    python3 scripts/on_card.py --small          the dry run of the whole: tiny sizes, on a CPU, in under two minutes

Run from a copy of the tree; nothing has to be installed but what docs/benchmarks/card.md lists. A stage that fails says
so and the next one runs; the status is 1 if one failed. Random weights, no hub, no network.
"""

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from card import bare  # noqa: E402 (the path has to be set first)

GRACE_SECONDS = 30
MADE_BY = {"trials": ("model",), "score": ("model", "trials")}
"""Stages that make what others use."""
NAMES = ("facts", "ceilings", "model", "trials", "tests", "score", "kernels", "ccs", "clusters")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install, offline, into a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("card-out"), help="card.jsonl is written there")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all stages together")
    parser.add_argument("--commit", help="of this tree, where git is not at hand")
    parser.add_argument("--small", action="store_true", help="the dry run: tiny sizes, also without a card")
    parser.add_argument("--stages", default=",".join(NAMES), help="some of them, separated by commas")
    parser.add_argument("--continued", type=json.loads, default={}, help=argparse.SUPPRESS)
    found = parser.parse_args()
    unknown = [name for name in found.stages.split(",") if name not in NAMES]
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return found


def main() -> int:
    """Install the wheels, then run the stages; gives the exit status."""
    wanted = options()
    # Where a kernel hangs the card, no Python code runs any more: this ends the process all the same.
    faulthandler.dump_traceback_later(wanted.minutes * 60 + GRACE_SECONDS, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "site"
        if wanted.wheels is not None:
            bare.install(wanted.wheels, target)
        return measure(wanted, (target,) if wanted.wheels is not None else ())


def measure(wanted: argparse.Namespace, children: tuple[Path, ...]) -> int:
    """Run the stages that are wanted."""
    import torch
    from card.lines import Lines
    from card.run import Run, run_stages
    from card.sizes import FULL, SMALL
    from card.stages import stages

    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not wanted.small:
        print("on_card: there is no CUDA card; --small is the dry run of the whole on a CPU", file=sys.stderr)
        return 2
    lines = Lines(wanted.out / "card.jsonl")
    run = Run(device, wanted.small, SMALL if wanted.small else FULL, lines, children, wanted.commit, **wanted.continued)
    named = wanted.stages.split(",")
    status = run_stages(run, [stage for stage in stages() if stage.name in named], wanted.minutes * 60)
    if run.rest:
        known = {"measured": run.measured, "failures": run.failures}
        go_on(wanted, run.rest, wanted.minutes - (time.monotonic() - began) / 60, known)
    return status


def go_on(wanted: argparse.Namespace, rest: list[str], minutes: float, known: dict[str, Any]) -> None:
    """Put a new process in the place of this one, which can use the card no more; it runs what is left."""
    command = continuation(wanted, rest, minutes, known)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the driver's too, or the card's memory would stay taken
    os.execv(sys.executable, command)


def continuation(wanted: argparse.Namespace, rest: list[str], minutes: float, known: dict[str, Any]) -> list[str]:
    """Its command: the stages that are left, and those that make what they use again."""
    needed = {name for stage in rest for name in (stage, *MADE_BY.get(stage, ()))}
    given = {"--wheels": wanted.wheels, "--out": wanted.out, "--commit": wanted.commit}
    return [
        *(sys.executable, __file__, "--minutes", f"{minutes:.3f}", "--continued", json.dumps(known)),
        *("--stages", ",".join(name for name in NAMES if name in needed)),
        *(part for name, value in given.items() if value is not None for part in (name, str(value))),
        *(["--small"] if wanted.small else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
