"""The files of ``probing refusal transfer``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probing.kernels.dispatch import with_fallbacks
from probing.runs.common.record import write_summary
from probing.runs.refusal.common.prompts import Kinds
from probing.runs.refusal.transfer.config import (
    ANSWERS_FILE,
    CATEGORIES_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    TransferConfig,
)
from probing.runs.refusal.transfer.tables import Found, make_tables
from probing.store.directions import DIRECTION_FILE, save_direction
from probing.store.shards import write_frame


def write_files(
    path: Path, config: TransferConfig, kinds: Kinds, found: Sequence[Found]
) -> tuple[list[str], dict[str, Any]]:
    """Write every file but the record; returns their names and the facts of the run."""
    facts = _gather_facts(kinds, found)
    results = pd.DataFrame([{"model": each.name, **row} for each in found for row in each.judged.rows])
    names = _write_frames(path, results, found)
    write_summary(path / SUMMARY_FILE, facts, make_tables(config, results, found))
    names.append(SUMMARY_FILE)
    for number, each in enumerate(found, start=1):
        name = DIRECTION_FILE if len(found) == 1 else f"direction-{number}.safetensors"
        save_direction(path / name, each.judged.direction)
        names.append(name)
    return names, facts


def _write_frames(path: Path, results: pd.DataFrame, found: Sequence[Found]) -> list[str]:
    frames = {RESULTS_FILE: results}
    categories = [{"model": each.name, **row} for each in found for row in each.matrix.rows]
    if categories:
        frames[CATEGORIES_FILE] = pd.DataFrame(categories)
    texts = {each.name: each.texts.rows for each in found if each.texts is not None}
    if texts:
        frames[ANSWERS_FILE] = pd.concat(texts, names=["model"]).reset_index("model").reset_index(drop=True)
    for name, frame in frames.items():
        write_frame(frame, path / name)
    return list(frames)


def _gather_facts(kinds: Kinds, found: Sequence[Found]) -> dict[str, Any]:
    read = len(found[0].shared.prompts)
    facts: dict[str, Any] = {
        "data": kinds.table.facts(),
        "rows_by_status": {"ok": read},
        "problems": [],
        "rows_that_not_both_read": len(kinds.prompts) - read,
        "directions": [each.judged.direction.facts for each in found],
        "categories_left_out": [
            {name: {"fitted": fitted, "held_out": out} for name, (fitted, out) in each.matrix.left_out.items()}
            for each in found
        ],
    }
    texts = [each.texts for each in found if each.texts is not None]
    if texts:
        facts["how"] = with_fallbacks("; ".join(dict.fromkeys(each.how for each in texts)))
        facts["prompts_too_long_to_answer"] = [each.left_out for each in texts]
    return facts
