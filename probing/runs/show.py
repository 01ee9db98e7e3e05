"""The job ``probing show``: pairs of a finished run, with their texts beside their numbers."""

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import UsageError
from probing.runs.common.options import MOST_ROWS, Options, option
from probing.runs.common.scored import read_pair_table, read_scored_pairs
from probing.runs.displacement.config import PAIRS_FILE
from probing.runs.influence.config import INFLUENCE_FILE
from probing.runs.score.config import SCORES_FILE
from probing.shown import to_message
from probing.store.files import new_file
from probing.types import PreferencePair, Report, Text, message_text

if TYPE_CHECKING:
    import pandas as pd

BY = {SCORES_FILE: "ches_normalized", PAIRS_FILE: "chosen_change", INFLUENCE_FILE: "influence"}
"""The table that a run may have written, and the column by which its pairs are ordered unless one is named."""
JOINT = "joint_rate"
"""The column of an influence without a target."""
USUAL = 5
WIDTH = 100
LONGEST = 2000
TEXTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class ShowConfig(Options):
    """Show pairs of a scored or compared dataset, with their texts beside their numbers.

    Args:
        folder: output folder of "probing score", "probing displacement" or "probing influence".
        by: column that pairs are ordered by; by default ches_normalized, chosen_change of a comparison, or influence.
        lowest: number of pairs to show with the lowest values.
        highest: number of pairs to show with the highest values; 5 by default, if nothing else is asked for.
        id: id of a pair to show; may be repeated.
        data: the dataset, where it lies elsewhere now.
        export: JSONL file to write these pairs to, with all their numbers and whole texts.
        overwrite: replace the file of --export if it exists.
    """

    folder: Path = option(positional=True)
    by: str | None = None
    lowest: int | None = option(None, least=1, most=MOST_ROWS)
    highest: int | None = option(None, least=1, most=MOST_ROWS)
    id: str | list[str] | None = option(None, repeatable=True)
    data: str | list[str] | None = option(None, repeatable=True, identity=False)
    export: Path | None = None
    overwrite: bool = False


def run(config: ShowConfig) -> Report:
    """The pairs that were asked for.

    Raises:
        UsageError: the folder holds no pairs, or there is no such column or id.
        SourceMismatch: the dataset is not the one of the run.
        StoreCorrupt: files of the run are damaged.
    """
    folder = Path(config.folder).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder; give the output folder of 'probing score', 'probing displacement' or 'probing "
            f"influence'"
        )
    file = next((folder / name for name in BY if (folder / name).is_file()), None)
    if file is None:
        raise UsageError(f"{folder}: holds no finished run of 'probing score', 'displacement' or 'influence'")
    frame, facts = read_pair_table(file)
    _, pairs = read_scored_pairs(config.data or facts.get("config", {}).get("data"), facts, folder)
    by = config.by or next(name for name in (BY[file.name], JOINT, *frame.select_dtypes("number")) if name in frame)
    chosen = choose_rows(config, frame, by)
    texts = {pair.id: pair for pair in pairs}
    rows = [_join_texts(values, texts[values["id"]]) for values in chosen.to_dict("records")]
    wrote = {} if config.export is None else {"wrote": [_export(rows, config.export.expanduser(), config.overwrite)]}
    shown = "\n\n".join(_describe(row, by) for row in rows)
    return Report({f"Pairs, ordered by {by}": chosen}, {"by": by, "pairs": rows, **wrote}, shown)


def choose_rows(config: ShowConfig, frame: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """The rows that were asked for: by id, or from either end of a column; ties by id.

    Raises:
        UsageError: there is no such column of numbers, or no such id.
    """
    import pandas as pd

    numbers = [str(name) for name in frame.select_dtypes("number")]
    if by not in numbers:
        raise UsageError(f"there is no column '{by}' to order by; there are {', '.join(numbers)}")
    ids = [config.id] if isinstance(config.id, str) else list(config.id or [])
    unknown = [id for id in ids if id not in set(frame["id"])]
    if unknown:
        raise UsageError(f"there is no pair '{unknown[0]}' in the run")
    ordered = frame[frame[by].notna()].sort_values([by, "id"], ascending=[False, True])
    highest = config.highest or (0 if config.lowest or ids else USUAL)
    lowest = ordered.tail(config.lowest)[::-1] if config.lowest else ordered[:0]
    named = frame[frame["id"].isin(ids)]
    return pd.concat([named, ordered.head(highest), lowest]).drop_duplicates("id")


def _join_texts(values: Mapping[Any, Any], pair: PreferencePair) -> dict[str, Any]:
    """The numbers of a pair and its texts; None for a number that there is not."""
    numbers = {str(name): None if value != value else value for name, value in values.items()}
    return {**numbers, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _describe(row: Mapping[str, Any], by: str) -> str:
    """One pair as lines: where it stands, its numbers, its texts."""
    where = f"row {row['row']}" + (f" of {row['file']}" if row.get("file") else "") if "row" in row else ""
    heading = ", ".join(part for part in (f"{row['id']}", where, row["status"]) if part)
    numbers = [by, *(name for name in row if name not in (by, "id", "row", "file", "status", *TEXTS))]
    shown = ", ".join(f"{name} {_spell(row[name])}" for name in numbers if row[name] is not None)
    lines = [to_message(heading), textwrap.fill(shown, _width(), initial_indent="  ", subsequent_indent="  ")]
    return "\n".join([*lines, *(_wrap(name, row[name]) for name in TEXTS)])


def _width() -> int:
    """Columns of the terminal where it is narrower than the usual text."""
    return max(20, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def _spell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _wrap(name: str, text: Text) -> str:
    """A text below its name, wrapped, with a line for every message."""
    messages = [text] if isinstance(text, str) else [f"{entry['role']}: {message_text(entry)}" for entry in text]
    wrapped = [
        textwrap.fill(to_message(message, LONGEST), _width(), initial_indent="    ", subsequent_indent="    ")
        for message in messages
    ]
    return "\n".join([f"  {name}", *wrapped])


def _export(rows: Sequence[Mapping[str, Any]], target: Path, overwrite: bool) -> str:
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: exists already; choose another --export, or replace it with --overwrite")
    with new_file(target) as temporary:
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    return str(target)
