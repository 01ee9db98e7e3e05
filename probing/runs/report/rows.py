"""Texts of the rows of a run: its dataset, read again from where it lay, if it is still the same."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probing.data.columns import column_values
from probing.data.pair_units import pair_units
from probing.data.prompts import prompts_from_table
from probing.data.rollouts import content_sha256, name_response
from probing.errors import DataInvalid, ProbingError, SourceMismatch
from probing.report.parts import RunData
from probing.report.sections.pairs import PAIR_FILES, SCORES
from probing.runs.ccs.config import FORMS_FILE
from probing.runs.common.datasets import read_labelled_sources, read_rollouts, text_columns
from probing.runs.common.options import RolloutOptions, TextOptions
from probing.runs.common.scored import check_readable, read_scored_pairs
from probing.runs.score.tables import BY, SUGGESTED_DROP, find_suggested_threshold
from probing.types import Text, message_text

log = logging.getLogger(__name__)

FORMS = {"A1": "statement, yes form", "A0": "statement, no form", "N1": "opposite, yes form", "N0": "opposite, no form"}
"""What the forms of a pair of statements are, by the end of their ids."""


@dataclass(frozen=True)
class Texts:
    """What a dataset says of the rows of a run; see ``RunData``."""

    texts: Mapping[str, Mapping[str, str]]
    groups: Mapping[str, str]
    units: Any = None


def add_texts(run: RunData, folder: Path, data: Sequence[str]) -> tuple[RunData, str | None]:
    """The run with the texts of its rows, and why it has none.

    Args:
        run: the run.
        folder: its folder.
        data: where its dataset may lie now, if not where the run found it.
    """
    read = _find_reader(run, folder)
    if read is None:
        return run, None
    recorded = run.record["config"].get("data")
    reasons = []
    # Runs of different datasets may each have one among those that are named.
    named = [list(data), *(data if len(data) > 1 else [])] if data else []
    for source in (recorded, *named):
        try:
            found = read(source)
        except (ProbingError, OSError) as error:
            reasons.append(str(error))
        else:
            marks = _find_marks(run)
            return replace(run, texts=found.texts, groups=found.groups, units=found.units, marks=marks), None
    reason = f"{run.label}: the texts of its rows are not shown ({reasons[-1]})"
    log.warning("%s", reason)
    return replace(run, marks=_find_marks(run)), reason


def _find_reader(run: RunData, folder: Path) -> Callable[[Any], Texts] | None:
    """The function that reads the texts of a run, given the dataset; None where it has none that are read."""
    if run.command in PAIR_FILES:
        return lambda source: _read_pair_texts(run, folder, source)
    if run.command == "ccs":
        return lambda source: _read_forms(folder / FORMS_FILE)
    if run.command == "rollouts":
        return lambda source: _read_responses(run, folder, source)
    if isinstance(run.record.get("data"), dict | list) and run.record["config"].get("data"):
        return lambda source: _read_prompts(run, folder, source)
    return None


def _read_pair_texts(run: RunData, folder: Path, source: Any) -> Texts:
    table, pairs = read_scored_pairs(source, run.record, folder)
    texts = {
        pair.id: {"prompt": spell(pair.prompt), "chosen": spell(pair.chosen), "rejected": spell(pair.rejected)}
        for pair in pairs
    }
    column = run.record["config"].get("group_column")
    values = column_values(table, column) if column else []
    groups = {pair.id: str(value) for pair, value in zip(pairs, values, strict=False)}
    return Texts(texts, groups, pair_units(pairs))


def _read_forms(path: Path) -> Texts:
    """The forms of statements that a run of contrast-consistent probes wrote for its rows."""
    texts: dict[str, dict[str, str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            identity, _, form = str(row["id"]).rpartition("#")
            texts.setdefault(identity, {})[FORMS.get(form, form)] = str(row["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataInvalid(f"{path}: not as it was written ({error})") from error
    return Texts(texts, {})


def _read_responses(run: RunData, folder: Path, source: Any) -> Texts:
    """Prompts and responses by id of the response, if the groups are those that the run read."""
    used = run.record["config"]
    known = {entry.name for entry in fields(RolloutOptions)} - {"data", "out"}
    options = RolloutOptions(
        data=check_readable(source, folder), out=folder, **{k: v for k, v in used.items() if k in known}
    )
    table, groups = read_rollouts(options)
    if run.record.get("data", {}).get("groups_sha256") != content_sha256(groups):
        raise SourceMismatch(f"{table.path}: these are not the groups of the run any more")
    texts = {
        name_response(group.id, number): {"prompt": spell(group.prompt), "response": spell(response)}
        for group in groups
        for number, response in enumerate(group.responses)
    }
    return Texts(texts, {})


def _read_prompts(run: RunData, folder: Path, source: Any) -> Texts:
    """Prompts or texts by id, if the part of the dataset is the one that the run read."""
    used = run.record["config"]
    known = {entry.name for entry in fields(TextOptions)} - {"data", "out"}
    options = TextOptions(
        data=check_readable(source, folder), out=folder, **{k: v for k, v in used.items() if k in known}
    )
    table = read_labelled_sources(options, options.sources, options.part)
    recorded = run.record["data"]
    if isinstance(recorded, dict) and recorded.get("sha256") not in (None, table.sha256):
        raise SourceMismatch(f"{table.path}: is not the dataset of the run any more")
    prompts = prompts_from_table(table, text_columns(options))
    return Texts({prompt.id: {"text": spell(prompt.text)} for prompt in prompts}, {})


def spell(text: Text) -> str:
    """A text, or the messages of a conversation with their roles before them."""
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{entry['role']}: {message_text(entry)}" for entry in text)


def _find_marks(run: RunData) -> dict[str, tuple[float, str]]:
    """Where the filter that a scoring suggests cuts; nothing where a score that it would need is missing."""
    frame = run.files.get(SCORES)
    if run.command != "score" or frame is None or not {"id", "status", BY} <= set(frame.columns):
        return {}
    scores = pd.to_numeric(frame.loc[frame["status"] == "ok", BY], errors="coerce")
    if not np.isfinite(scores.to_numpy(dtype=np.float64, na_value=np.nan)).all():
        return {}
    threshold = find_suggested_threshold(frame)
    return {} if threshold is None else {BY: (threshold, f"--drop-highest {SUGGESTED_DROP:g}")}
