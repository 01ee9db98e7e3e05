"""The files of ``probing refusal extract``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probing.directions.extract import cosine
from probing.instruments.directions import describe_method
from probing.instruments.problems import LISTED_PROBLEMS
from probing.runs.common.record import describe_how, write_summary
from probing.runs.refusal.common.prompts import PROMPTS_FILE, Kinds
from probing.runs.refusal.extract.config import RESULTS_FILE, SUMMARY_FILE, ExtractConfig
from probing.runs.refusal.extract.parts import NUMBERS
from probing.runs.refusal.extract.rows import Material
from probing.store.directions import DIRECTIONS_FILE, save_directions
from probing.store.shards import write_frame
from probing.types import Directions, Place

Arrays = Mapping[str, NDArray[np.float64]]


def gather_facts(material: Material, kinds: Kinds, names: Mapping[int, str]) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    statuses = Counter(problem.status for problem in material.problems)
    used = {
        name: {"train": len(material.pick(kind, False)), "validation": len(material.pick(kind, True))}
        for kind, name in ((True, "harmful"), (False, "harmless"))
    }
    out = np.concatenate([material.pick(kind, held_out=True) for kind in (True, False)])
    return {
        "data": kinds.table.facts(),
        "source": material.store.facts["source"],
        "how": describe_how(material.store),
        "rows_by_status": {"ok": len(material.prompts), **dict(sorted(statuses.items()))},
        "problems": [asdict(problem) for problem in material.problems][:LISTED_PROBLEMS],
        "rows_of_other_labels": kinds.others,
        "prompts": used,
        "held_out": len(out),
        "groups_held_out": len(set(material.units[out].tolist())),
        "places": list(material.places),
        "refusal_tokens": [asdict(token) | {"text": names[token.id]} for token in material.tokens],
    }


def list_results(places: Sequence[str], arrays: Sequence[Arrays]) -> pd.DataFrame:
    """One row a place and position; ``cosine_to_other``: to the direction at the other end of the prompt's end."""
    rows = []
    for place, own in zip(places, arrays, strict=True):
        vectors = torch.from_numpy(own["vectors"])
        first = vectors if vectors.ndim == 2 else vectors[:, 0]
        count = len(first)
        for at in range(count):
            other = first[0 if at == count - 1 else count - 1]
            row: dict[str, Any] = {"place": place, "position": at - count}
            row |= {name: float(own[name][at]) for name in NUMBERS}
            rows.append(row | {"cosine_to_other": float(cosine(first[at], other))})
    return pd.DataFrame(rows)


def collect_directions(config: ExtractConfig, material: Material, arrays: Sequence[Arrays]) -> Directions:
    """All directions with the model that they are of."""
    vectors, harmful, harmless = (
        torch.from_numpy(np.stack([own[name] for own in arrays]))
        for name in ("vectors", "harmful_mean", "harmless_mean")
    )
    counts = {name: len(material.pick(kind, False)) for kind, name in ((True, "harmful"), (False, "harmless"))}
    return Directions(
        vectors=vectors,
        harmful_mean=harmful,
        harmless_mean=harmless,
        places=tuple(map(Place.parse, material.places)),
        positions=tuple(range(-vectors.shape[1], 0)),
        source=material.store.source,
        method=describe_method(config.method, config.rank, config.off_harmless_mean, config.winsorize),
        facts={
            "prompts": counts,
            "filtered_by_sign": config.filter_by_sign,
            "refusal_tokens": [token.id for token in material.tokens],
        },
    )


def list_prompts(material: Material) -> pd.DataFrame:
    """Every prompt: what kind it is, on which side of the split, its refusal score, and whether it is used."""
    rows: list[dict[str, Any]] = [
        {
            "id": prompt.id,
            "status": "ok",
            "kind": "harmful" if material.harmful[at] else "harmless",
            "category": prompt.category,
            "part": "validation" if material.held_out[at] else "train",
            "refusal_score": float(material.scores[at]),
            "used": bool(material.passes[at]),
        }
        for at, prompt in enumerate(material.prompts)
    ]
    rows += [{"id": p.id, "status": p.status, "detail": p.detail, "used": False} for p in material.problems]
    return pd.DataFrame(rows).astype({"category": "string"})


def write_files(
    path: Path,
    directions: Directions,
    results: pd.DataFrame,
    prompts: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    save_directions(path / DIRECTIONS_FILE, directions)
    write_frame(results, path / RESULTS_FILE)
    write_frame(prompts, path / PROMPTS_FILE)
    write_summary(path / SUMMARY_FILE, facts, tables)
    return [DIRECTIONS_FILE, RESULTS_FILE, PROMPTS_FILE, SUMMARY_FILE]
