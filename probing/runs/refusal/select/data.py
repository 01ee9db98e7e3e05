"""The prompts that 'probing refusal extract' held out."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from probing.data.tables import Table
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt
from probing.runs.common.record import is_unchanged
from probing.runs.refusal.common.prompts import PROMPTS_FILE, Kinds, split_kinds
from probing.runs.refusal.select.config import SelectConfig
from probing.store.records import read_run
from probing.types import LabelledPrompt

EXTRACT = "refusal extract"


@dataclass(frozen=True)
class HeldOut:
    """The held-out prompts.

    Attributes:
        table: the dataset that they come from.
        harmful: harmful prompts.
        harmless: harmless prompts.
    """

    table: Table
    harmful: list[LabelledPrompt]
    harmless: list[LabelledPrompt]


def read_held_out(config: SelectConfig, kinds: Kinds) -> HeldOut:
    """The prompts that were held out when the directions were extracted, and could be read.

    Args:
        config: the job's options.
        kinds: all prompts of the data.

    Raises:
        SourceMismatch: the folder holds no finished extraction, or one of other data.
        StoreCorrupt: its list of prompts is damaged.
    """
    folder = Path(config.directions).expanduser()
    listed = _read_list(folder)
    wanted = listed[(listed["status"] == "ok") & (listed["part"] == "validation")]
    ids = dict(zip(wanted["id"], wanted["kind"] == "harmful", strict=True))
    found = [
        (prompt, harmful) for prompt, harmful in zip(kinds.prompts, kinds.harmful, strict=True) if prompt.id in ids
    ]
    missing = set(ids) - {prompt.id for prompt, _ in found}
    other = [prompt.id for prompt, harmful in found if ids[prompt.id] != harmful]
    if missing or other:
        first = min(missing or other)
        raise SourceMismatch(
            f"{folder}: the prompt '{first}' that was held out there is not in {kinds.table.path}, or its label is "
            f"another; give the data, labels and columns of that run"
        )
    if not found:
        raise DataInvalid(f"{folder}: no prompt was held out there that could be read")
    harmful, harmless = split_kinds([prompt for prompt, _ in found], [flag for _, flag in found])
    return HeldOut(kinds.table, harmful, harmless)


def _read_list(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise SourceMismatch(f"{folder}: no such folder; --directions is what 'probing {EXTRACT}' wrote")
    record = read_run(folder)
    if record["command"] != EXTRACT or record["status"] != "done":
        raise SourceMismatch(
            f"{folder}: holds a run of 'probing {record['command']}' ({record['status']}), not a finished one of "
            f"'probing {EXTRACT}'"
        )
    path = folder / PROMPTS_FILE
    if not is_unchanged(path, record["sha256"].get(PROMPTS_FILE)):
        raise StoreCorrupt(f"{path}: gone or changed since the run ended; extract the directions again")
    return pd.read_parquet(path)
