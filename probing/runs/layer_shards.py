"""A job over the layers of a model: what each gives is saved when it is done, and known again after a restart."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from probing.data.tables import canonical
from probing.errors import DataInvalid, OutOfMemory, SourceMismatch, StoreCorrupt, UsageError
from probing.kernels.dispatch import fallbacks
from probing.models.load import LanguageModel, device_names, free_memory, load
from probing.probes.controls import LEAST_FOLDS, make_folds
from probing.probes.threads import single_threads
from probing.report.progress import Progress
from probing.runs.capture import expand_places
from probing.runs.sharded import content_of, options_of, plain
from probing.runs.versions import versions
from probing.store.activations import ActivationStore, fault, open_store, states_path, write_states
from probing.store.files import file_sha256, new_file
from probing.store.manifest import MANIFEST, RUN_FILE, RunFolder
from probing.store.shards import read_shard, shard_path, write_shard
from probing.types import Report

SCHEMA = pa.schema([("place", pa.string())])
STATES = "states"
"""Where a run keeps the states that it captured."""
NULL_SHARES = (0.025, 0.5, 0.975)
DEFAULT_PLACES = "resid_post:all"
Arrays = Mapping[str, NDArray[np.float64]]


def all_layers(
    folder: Path,
    places: Sequence[str],
    make: Callable[[str, Callable[[float], None]], Arrays],
    doing: str,
    at_once: int | None = None,
) -> None:
    """Make what is not there yet.

    Args:
        folder: where the parts lie.
        places: one part each.
        make: the arrays of a place; told how to report which share of it is done.
        doing: for the progress bar.
        at_once: how many parts are made at once, by a thread each, in which torch has no others; by default one, in
            this thread.
    """
    known = [_is_there(folder, number, place) for number, place in enumerate(places)]
    missing = [(number, place) for number, (place, there) in enumerate(zip(places, known, strict=True)) if not there]
    with Progress(len(places), sum(known), unit="places", doing=doing) as bar:
        for number, arrays in _made(missing, make, bar, at_once):
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            facts = write_states(states_path(folder, number), tensors)
            write_shard(shard_path(folder, number), pa.table({"place": [places[number]]}, schema=SCHEMA), facts)


class Stopped(Exception):
    """Raised inside a part that is being made when another one failed, or the run was interrupted."""


def _made(
    missing: Sequence[tuple[int, str]],
    make: Callable[[str, Callable[[float], None]], Arrays],
    bar: Progress,
    at_once: int | None,
) -> Iterator[tuple[int, Arrays]]:
    """Every part in order, as soon as it is made."""
    if at_once is None:
        for number, place in missing:
            yield number, make(place, lambda share: bar.advance(share, 0))
        return
    stop, one_at_a_time = threading.Event(), threading.Lock()

    def report(share: float) -> None:
        if stop.is_set():
            raise Stopped
        with one_at_a_time:
            bar.advance(share, 0)

    def made(part: tuple[int, str]) -> Arrays:
        if stop.is_set():
            raise Stopped
        try:
            return make(part[1], report)
        except BaseException:
            stop.set()  # before this thread turns to the next part
            raise

    with single_threads(at_once) as pool:
        try:
            for (number, _), arrays in zip(missing, pool.map(made, missing), strict=True):
                yield number, arrays
        finally:
            stop.set()


def read_layer_arrays(folder: Path, number: int) -> dict[str, NDArray[np.float64]]:
    """The arrays of one place."""
    return {name: tensor.numpy() for name, tensor in load_file(states_path(folder, number)).items()}


def _is_there(folder: Path, number: int, place: str) -> bool:
    found = read_shard(shard_path(folder, number), SCHEMA)
    if found is None or found[0]["place"].to_pylist() != [place]:
        return False
    return fault(states_path(folder, number), found[1], deep=True) is None


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


def source_of(config: Any) -> LanguageModel | ActivationStore:
    """The model that a job was given, or the store in its place."""
    if config.store is not None:
        return open_states(config.store)
    return load(config.model, config.revision, config.dtype, config.device, config.trust_remote_code)


def folds_of(
    config: Any, units: Sequence[int], values: Sequence[str] | None, rows: str, share: str
) -> tuple[Any, list[int]]:
    """The fold of each row, and the groups that folds keep whole.

    Args:
        config: with ``folds``, ``seed`` and ``split_by``.
        units: rows of one unit share texts.
        values: that must not be in two folds either.
        rows: what a row is called.
        share: what units share.

    Raises:
        DataInvalid: fewer groups than folds.
    """
    together = joined_groups(units, values)
    try:
        return make_folds(together, config.folds, config.seed), together
    except ValueError as error:
        by = f"share no {share}" if values is None else f"share neither a {share} nor a {config.split_by}"
        raise DataInvalid(
            f"{len(units)} {rows} make {len(set(together))} groups that {by}; {config.folds} folds need as many. "
            f"Give more {rows}, or fewer --folds (at least {LEAST_FOLDS})"
        ) from error


def open_states(path: Path | str) -> ActivationStore:
    """The store in a folder, or that of the run which the folder holds.

    Raises:
        SourceMismatch: it has no states, or those of every token.
    """
    folder = Path(path).expanduser()
    within = folder / STATES
    store = open_store(within if not (folder / MANIFEST).exists() and (within / MANIFEST).exists() else folder)
    if store.pooling == "tokens":
        raise SourceMismatch(f"{store.path}: holds the states of every token; capture one state a text")
    return store


def places_of(store: ActivationStore, given: str | Sequence[str]) -> list[str]:
    """The places of a store that are asked for: all of them, where the option was left alone.

    Raises:
        UsageError: one of them was not captured.
    """
    there = list(map(str, store.places))
    if given == DEFAULT_PLACES:
        return there
    wanted = list(map(str, expand_places(given, int(store.facts["layers"]))))
    missing = [place for place in wanted if place not in there]
    if missing:
        raise UsageError(f"{store.path}: {missing[0]} was not captured; there are {', '.join(there)}")
    return wanted


def joined_groups(units: Sequence[int], values: Sequence[str] | None) -> list[int]:
    """Groups of rows that share a unit or a value, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if values is None:
        return list(units)
    _, left = np.unique(np.asarray(units), return_inverse=True)
    _, right = np.unique(np.asarray(values), return_inverse=True)
    size = int(left.max()) + 1 + int(right.max()) + 1
    links = coo_array((np.ones(len(left)), (left, int(left.max()) + 1 + right)), shape=(size, size))
    found: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return [int(group) for group in found[left]]


def null_columns(name: str, null: NDArray[np.float64] | None) -> dict[str, float]:
    """The middle 95 % of a null and its median, as columns of a table; NaN where there is none."""
    known = np.empty(0) if null is None else null[np.isfinite(null)]
    cuts = np.quantile(known, NULL_SHARES).tolist() if len(known) else [float("nan")] * 3
    return dict(zip((f"{name}_low", f"{name}_median", f"{name}_high"), cuts, strict=True))


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


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise unless so many bytes are free.

    Raises:
        OutOfMemory: says how many are needed and what to do.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{what} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free on the {device.type}; take "
            f"fewer rows or --folds, or a machine with more memory"
        )
