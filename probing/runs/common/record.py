"""What a run depends on, and the record of what it did."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probing.data.tables import canonical
from probing.errors import StoreCorrupt
from probing.kernels.dispatch import fallbacks
from probing.models.devices import device_names, devices_of
from probing.models.load import LanguageModel
from probing.runs.common.versions import versions
from probing.store.activations import ActivationStore
from probing.store.files import file_sha256, new_file
from probing.store.manifest import RUN_FILE, RunFolder
from probing.types import Report, Source

LATER: Mapping[str, Any] = {"compile": False}
"""Options that the jobs did not have at first, with what was true before."""


def plain(config: Any) -> dict[str, Any]:
    """The fields of a job's options, as they are written down."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def identity(
    config: Any, left_out: Sequence[str], model: LanguageModel, later: Mapping[str, Any] = LATER
) -> dict[str, Any]:
    """What the bytes of every job depend on, besides its models and data: options, machine, versions.

    Args:
        config: the job's options.
        left_out: options that change no byte, or are told apart by content.
        model: says on which device and in which dtype.
        later: see ``options_of``.
    """
    return {
        "options": options_of(config, left_out, later),
        "device": device_names(devices_of(model)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def options_of(config: Any, left_out: Sequence[str], later: Mapping[str, Any] = LATER) -> dict[str, Any]:
    """The options that are part of a run's identity.

    Args:
        config: the job's options.
        left_out: those that are not.
        later: those that earlier versions of the job did not have, with what was true before: left out where they say
            the same, so that folders of these versions still resume.
    """
    found = {name: value for name, value in plain(config).items() if name not in left_out}
    return {name: value for name, value in found.items() if name not in later or value != later[name]}


def content_of(source: Source) -> dict[str, Any]:
    """The hashes of a model's source."""
    return {key: value for key, value in asdict(source).items() if key.endswith("sha256") and value is not None}


def clear(folder: Path) -> None:
    """Remove the shards of a run that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def identity_of_layers(
    config: Any, left_out: Sequence[str], source: LanguageModel | ActivationStore, device: torch.device
) -> dict[str, Any]:
    """What the bytes of such a job depend on, besides its data: states, options, machine, versions.

    Args:
        config: the job's options.
        left_out: options that change no byte, or are told apart by content.
        source: a model that is still to be read, or states that were.
        device: where probes are fitted.
    """
    if isinstance(source, ActivationStore):
        states = identity_of_states(source)
    else:
        states = {"dtype": str(source.dtype).removeprefix("torch.")}
    return {
        "model": content_of(source.source),
        "states": states,
        "options": options_of(config, left_out),
        "device": device_names([device]),
        "versions": versions(),
    }


def how_told(store: ActivationStore) -> str:
    """How the states were captured, in words, and what has run in a slower way since."""
    how = str(store.facts["how"])
    later = (f"{what}: {why}" for what, why in fallbacks().items())
    return "; ".join([how, *(slower for slower in later if slower not in how)])


def identity_of_states(store: ActivationStore) -> dict[str, Any]:
    """What tells one store from another: its rows, and the numbers of all its places."""
    shards = hashlib.sha256(canonical(store.facts["shards"])).hexdigest()
    return {"rows_sha256": store.facts["rows_sha256"], "shards_sha256": shards, "dtype": store.facts["dtype"]}


def write_summary(path: Path, facts: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
    """Facts and tables as JSON; NaN becomes null."""
    shown = {title: json.loads(table.to_json(orient="records", double_precision=15)) for title, table in tables.items()}
    with new_file(path) as temporary:
        text = json.dumps({**facts, "tables": shown}, indent=2, ensure_ascii=False, default=str) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def finish(folder: RunFolder, config: Any, facts: Mapping[str, Any], written: Sequence[str], began: float) -> None:
    """Write the record of a run whose files are all there.

    Args:
        folder: of the run.
        config: the job's options.
        facts: what the record says.
        written: names of the files.
        began: when, by ``time.monotonic``.
    """
    hashes = {name: file_sha256(folder.path / name) for name in written}
    done = {"status": "done", "config": plain(config), **facts}
    folder.write({**folder.facts(), **done, "wall_seconds": round(time.monotonic() - began, 3), "sha256": hashes})


def finished_report(folder: RunFolder, summary: str) -> Report:
    """The tables of a finished run, from its summary.

    Raises:
        StoreCorrupt: a file of it is gone or changed.
    """
    facts = folder.facts()
    for name, sha256 in facts["sha256"].items():
        path = folder.path / name
        if not path.is_file() or file_sha256(path) != sha256:
            raise StoreCorrupt(f"{path}: gone or changed since it was written; delete the folder and run again")
    stored = json.loads((folder.path / summary).read_text(encoding="utf-8"))["tables"]
    tables = {title: pd.DataFrame(rows) for title, rows in stored.items()}
    return Report(tables, {**facts, "wrote": [str(folder.path / name) for name in (*facts["sha256"], RUN_FILE)]})
