"""The identity of a run, and the record of what it did."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probing.data.pairs import LazyPairs, list_pair_ids
from probing.data.tables import canonical
from probing.errors import SourceMismatch, StoreCorrupt
from probing.kernels.dispatch import with_fallbacks
from probing.models.devices import device_names
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.runs.common.about import BEGAN, RENDERED, today
from probing.runs.common.model_facts import AnyModel
from probing.runs.common.options import Options
from probing.runs.common.versions import versions
from probing.store.activations import ActivationStore
from probing.store.files import file_sha256, new_file
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.records import read_summary
from probing.tokens.rendering import is_rendered
from probing.tokens.templates import rendered_sha256
from probing.types import LabelledPrompt, PreferencePair, Report, RolloutGroup, Source

log = logging.getLogger(__name__)


def begin_run(
    folder: RunFolder,
    config: Options,
    made_of: Mapping[str, Any],
    devices: Sequence[torch.device] | str,
    dtype: torch.dtype | None = None,
    rendered: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Start a run in a folder, or go on with the one it holds if everything its bytes depend on is the same.

    Args:
        folder: folder of the run.
        config: the job's options; those that are part of its identity are compared with those in the record.
        made_of: hashes and names that tell the run's models, states and data from others.
        devices: devices that the run computes on; or their kinds, as ``device_names`` says them.
        dtype: dtype of the run's model, unless ``made_of`` says it.
        rendered: hashes of what chat templates write today. They are recorded, and compared by ``check_rendered``: what
            is finished can still be read on another day.

    Raises:
        SourceMismatch: the folder's run was made from something else; names each difference.
    """
    kinds = devices if isinstance(devices, str) else device_names(devices)
    depends_on = {**made_of, "options": config.identity(), "device": kinds}
    depends_on |= {} if dtype is None else {"dtype": dtype_name(dtype)}
    depends_on |= {"versions": versions()}
    with current_ranks().leader_first():
        known = folder.facts()
        written = known.get("identity", {}).get(RENDERED) if known else rendered
        begin_identified(folder, config, depends_on | ({RENDERED: written} if written else {}), today())


def begin_identified(folder: RunFolder, config: Options, depends_on: Mapping[str, Any], day: str) -> None:
    """The same, where everything that the bytes of the run depend on is known.

    Args:
        folder: folder of the run.
        config: the job's options.
        depends_on: identity of the run.
        day: day on which it began.

    Raises:
        SourceMismatch: the folder's run was made from something else; names each difference.
    """
    known = folder.facts()
    # The identity is made from the recorded options by today's rules, not by those of the version that wrote them, so
    # that older folders still resume.
    recorded = {**known.get("identity", {}), "options": config.recorded_identity(known.get("config", {}))}
    folder.begin(depends_on, {"config": config.plain(), BEGAN: day}, recorded)
    current_ranks().announce_begun()
    if known.get("status") == "done":
        log.warning("%s holds this run, finished: its results are shown again", folder.path)


def rendered_pairs(pairs: Sequence[PreferencePair], **models: AnyModel) -> dict[str, dict[str, str]]:
    """Hashes of what the chat template of each model writes around pairs; none for pairs of plain text."""
    if not isinstance(pairs, LazyPairs):
        return _rendered([pair.chat_template_kwargs for pair in pairs if pair.conversational], models)
    return _rendered(pairs.facts.arguments, models)


def rendered_prompts(prompts: Sequence[LabelledPrompt], chat: bool, **models: AnyModel) -> dict[str, dict[str, str]]:
    """The same of prompts; ``chat`` says whether plain text becomes a user's turn."""
    arguments = [prompt.chat_template_kwargs for prompt in prompts if is_rendered(prompt, chat)]
    return _rendered(arguments, models)


def rendered_groups(groups: Sequence[RolloutGroup], **models: AnyModel) -> dict[str, dict[str, str]]:
    """The same of groups of responses; none for groups of plain text."""
    return _rendered([group.chat_template_kwargs for group in groups if group.conversational], models)


def _rendered(arguments: Sequence[Any], models: Mapping[str, AnyModel]) -> dict[str, dict[str, str]]:
    if not arguments:
        return {}
    return {name: rendered_sha256(model.tokenizer, arguments) for name, model in models.items()}


def check_rendered(folder: RunFolder, rendered: Mapping[str, Mapping[str, str]]) -> None:
    """Raise before further rows get another prompt than those that the run already has.

    Raises:
        SourceMismatch: a chat template writes other text around the same conversation than when the run began.
    """
    changed = find_changed_templates(folder.facts(), rendered)
    if changed:
        raise SourceMismatch(
            f"{folder.path}: around the same conversation the chat template of the {changed[0]} writes other text now "
            f"than when this run began; most likely it writes today's date. The rows that are left would get another "
            f"prompt than the others. Choose another --out; a template that takes the date as an argument can be "
            f"given a fixed one in the column chat_template_kwargs"
        )


def note_rendered(folder: RunFolder, rendered: Mapping[str, Mapping[str, str]]) -> None:
    """Warn, and write into the record, that a chat template began to write other text while the run was on."""
    changed = find_changed_templates(folder.facts(), rendered)
    if changed:
        log.warning(
            "while this run was on, the chat template of the %s began to write other text around the same "
            "conversation, most likely today's date: not all rows have the same prompt",
            changed[0],
        )
        folder.write({**folder.facts(), "rendered_changed": True})


def find_changed_templates(facts: Mapping[str, Any], rendered: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The models whose chat templates write other text than when the run of a record began; none in older records."""
    began = facts.get("identity", {}).get(RENDERED, {})
    return [
        name
        for name, hashes in rendered.items()
        if any(began.get(name, {}).get(arguments, sha256) != sha256 for arguments, sha256 in hashes.items())
    ]


def content_of(source: Source) -> dict[str, Any]:
    """The hashes of a model's source."""
    return {key: value for key, value in asdict(source).items() if key.endswith("sha256") and value is not None}


def content_of_states(source: LanguageModel | ActivationStore) -> dict[str, Any]:
    """Hashes that identify states: of a model that is still to be read, or of a store."""
    if isinstance(source, ActivationStore):
        return {"model": content_of(source.source), "states": content_of_store(source)}
    return {"model": content_of(source.source), "states": {"dtype": dtype_name(source.dtype)}}


def content_of_store(store: ActivationStore) -> dict[str, Any]:
    """Hashes that identify a store: of its rows, and of the numbers at all its places."""
    shards = hashlib.sha256(canonical(store.facts["shards"])).hexdigest()
    return {"rows_sha256": store.facts["rows_sha256"], "shards_sha256": shards, "dtype": store.facts["dtype"]}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype, as it is written down: "float32"."""
    return str(dtype).removeprefix("torch.")


def model_facts(model: AnyModel) -> dict[str, Any]:
    """Facts of a model for the record: its source, its devices and its dtype."""
    return asdict(model.source) | {"device": model.placement, "dtype": str(model.dtype)}


def describe_how(store: ActivationStore) -> str:
    """A description of how the states were captured, and of what has run in a slower way since."""
    # Stores of the first version do not say how they were captured.
    return with_fallbacks(str(store.facts.get("how", "not recorded")))


def clear(folder: Path) -> None:
    """Remove the shards of a run that is complete."""
    if current_ranks().leads:
        shutil.rmtree(folder, ignore_errors=True)


def write_summary(path: Path, facts: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
    """Facts and tables as JSON; NaN becomes null."""
    shown = {title: json.loads(table.to_json(orient="records", double_precision=15)) for title, table in tables.items()}
    with new_file(path) as temporary:
        text = json.dumps({**facts, "tables": shown}, indent=2, ensure_ascii=False, default=str) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def finish(
    folder: RunFolder, config: Options, facts: Mapping[str, Any], files: Mapping[str, Any], began: float
) -> None:
    """Write the record of a run whose files are all there.

    Args:
        folder: folder of the run.
        config: the job's options.
        facts: facts for the record.
        files: facts of the files: from ``hash_files``, or hashes under keys of the job's own.
        began: start of the run, by ``time.monotonic``.
    """
    done = {"status": "done", "config": config.plain(), **facts}
    folder.write({**folder.facts(), **done, "wall_seconds": round(time.monotonic() - began, 3), **files})


def hash_files(folder: RunFolder, names: Sequence[str]) -> dict[str, Any]:
    """Hashes of a run's files, as its record holds them."""
    return {"sha256": {name: file_sha256(folder.path / name) for name in names}}


def is_unchanged(path: Path, sha256: str | None) -> bool:
    """Whether a file is there itself, not by a link, and has this hash."""
    return path.is_file() and not path.is_symlink() and file_sha256(path) == sha256


def check_files(folder: RunFolder, hashes: Mapping[str, str]) -> None:
    """Raise unless the files of a finished run are as they were written.

    Args:
        folder: folder of the run.
        hashes: hashes of the run's files, by name.

    Raises:
        StoreCorrupt: a file is missing or changed.
    """
    for name, sha256 in hashes.items():
        path = folder.path / name
        if not is_unchanged(path, sha256):
            raise StoreCorrupt(f"{path}: gone or changed since the run ended; delete {folder.path} and run again")


def check_ids(path: Path, ids: Iterable[object], pairs: Sequence[PreferencePair]) -> None:
    """Raise unless a finished table is of these pairs: the bytes of a dataset do not say how its rows were given ids.

    Args:
        path: path of the table, for the message.
        ids: ids in the table.
        pairs: pairs of the dataset.

    Raises:
        SourceMismatch: the table is of rows with other ids.
    """
    for row, (found, expected) in enumerate(zip_longest(ids, list_pair_ids(pairs)), start=1):
        if expected is not None and found != expected:
            raise SourceMismatch(
                f"{path}: was made from rows with other ids (row {row} is '{expected}' now). Give the --id-column of "
                f"that run, or choose another --out"
            )


def report_of(
    folder: RunFolder, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], names: Sequence[str]
) -> Report:
    """The report of a finished run.

    Args:
        folder: folder of the run.
        tables: tables by title.
        facts: facts of the record.
        names: names of the files that the run wrote.
    """
    return Report(dict(tables), {**facts, "wrote": [str(folder.path / name) for name in names]})


def read_finished_report(folder: RunFolder, summary: str) -> Report:
    """The tables of a finished run, from its summary.

    Raises:
        StoreCorrupt: a file of the run is missing or changed.
    """
    facts = folder.facts()
    check_files(folder, facts["sha256"])
    tables = {title: pd.DataFrame(rows) for title, rows in read_summary(folder.path / summary).items()}
    return report_of(folder, tables, facts, [*facts["sha256"], RUN_FILE])
