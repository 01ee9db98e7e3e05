"""The shards of an array, found to be those of one run, and the dataset that they were made from."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from probing.data.tables import Table
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.data import read_data as read_texts
from probing.runs.common.about import RENDERED
from probing.runs.common.datasets import read_rollouts
from probing.runs.common.options import ArrayOptions
from probing.runs.common.scored import check_readable, recorded_shard
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.data import Inputs, read_rows
from probing.runs.rollouts.config import RolloutsConfig
from probing.runs.score.config import ScoreConfig
from probing.runs.score.data import read_data
from probing.shown import list_some
from probing.store.manifest import MANIFEST, RUN_FILE, find_differences, read_run
from probing.store.records import DELETE
from probing.types import LabelledPrompt, PreferencePair, RolloutGroup

CONFIGS: Mapping[str, type[ArrayOptions]] = {
    "score": ScoreConfig,
    "displacement": DisplacementConfig,
    "rollouts": RolloutsConfig,
    "capture": CaptureConfig,
}
"""Options of the commands that can make a shard, by command."""
Config = TypeVar("Config", bound=ArrayOptions)


@dataclass(frozen=True)
class Member:
    """A finished run of one shard.

    Attributes:
        path: its folder.
        record: its record.
        config: its options.
    """

    path: Path
    record: Mapping[str, Any]
    config: ArrayOptions

    @property
    def index(self) -> int:
        """Number of the shard."""
        return self.config.shard_index or 0

    @property
    def identity(self) -> dict[str, Any]:
        """What its bytes depend on, without which shard it is, and without what chat templates wrote for its rows."""
        known = {name: value for name, value in self.record.get("identity", {}).items() if name != RENDERED}
        return {**known, "options": replace(self.config, shard_index=None, num_shards=None).identity()}

    @property
    def has_rows(self) -> bool:
        """Whether there are rows in the shard, which has none where there are more shards than rows."""
        return bool(self.record["rows_by_status"])


@dataclass(frozen=True)
class Array:
    """All shards of one run, in order.

    Attributes:
        members: the shards.
    """

    members: Sequence[Member]

    @property
    def command(self) -> str:
        """The command that made them."""
        return str(self.members[0].record["command"])

    @property
    def record_name(self) -> str:
        """Name of the file that holds the record of such a run."""
        return MANIFEST if self.command == "capture" else RUN_FILE

    @property
    def with_rows(self) -> list[Member]:
        """The shards that have rows; the first one where none has."""
        return [member for member in self.members if member.has_rows] or [self.members[0]]

    def identify_whole(self, config: ArrayOptions) -> dict[str, Any]:
        """Identity of the whole run, whose options are these.

        Raises:
            SourceMismatch: a chat template wrote other text for one shard than for another.
        """
        rendered: dict[str, dict[str, str]] = {}
        for member in self.members:
            for model, hashes in member.record.get("identity", {}).get(RENDERED, {}).items():
                known = rendered.setdefault(model, {})
                if any(known.get(arguments, sha256) != sha256 for arguments, sha256 in hashes.items()):
                    raise SourceMismatch(
                        f"{member.path}: the chat template of the {model} wrote other text around the same "
                        f"conversation than for the shards before, most likely the date of another day; run this shard "
                        f"and the others on one day"
                    )
                known.update(hashes)
        identity = {**self.members[0].record.get("identity", {}), "options": config.identity()}
        return identity | ({RENDERED: rendered} if rendered else {})


def find_array(folders: Sequence[Path]) -> Array:
    """The shards in these folders, found to be all shards of one run.

    Raises:
        UsageError: a folder is not there or named twice, a run is not finished, a shard is there twice or missing.
        SourceMismatch: a folder holds no shard, or one of another run; names each difference.
        StoreCorrupt: a record is damaged.
    """
    paths = [folder.expanduser() for folder in folders]
    places = Counter(os.path.realpath(path) for path in paths)
    twice = next((path for path in paths if places[os.path.realpath(path)] > 1), None)
    if twice is not None:
        raise UsageError(f"{twice}: is named twice; name every shard once")
    members = sorted(map(_read_member, paths), key=lambda member: member.index)
    for member in members[1:]:
        _check_same_run(members[0], member)
    _check_complete(members)
    return Array(members)


def _read_member(path: Path) -> Member:
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give the output folder of a finished shard")
    name = MANIFEST if os.path.lexists(path / MANIFEST) else RUN_FILE
    record = read_run(path, name)
    command, known = record["command"], record.get("config", {})
    if command not in CONFIGS or len(recorded_shard(known)) < 2:
        raise SourceMismatch(
            f"{path}: holds a run of 'probing {command}' that is no shard of an array; leave it out, or run it with "
            f"--shard-index and --num-shards"
        )
    if record["status"] != "done":
        raise UsageError(f"{path}: the run in it is not finished; run the same 'probing {command}' again, then merge")
    return Member(path, record, _restore_config(path, CONFIGS[command], known))


def _restore_config(path: Path, config_type: type[Config], known: Mapping[str, Any]) -> Config:
    """The options of a run, as its record holds them.

    Raises:
        StoreCorrupt: they are no options of the command.
    """
    values: dict[str, Any] = {}
    for entry in fields(config_type):
        value = known.get(entry.name, entry.default)
        is_path = value is not MISSING and value is not None and Path in (entry.type, *get_args(entry.type))
        values[entry.name] = Path(str(value)) if is_path else value
    try:
        return config_type(**{name: value for name, value in values.items() if value is not MISSING})
    except (ValueError, TypeError) as error:
        raise StoreCorrupt(f"{path}: the options in its record are damaged ({error}); {DELETE}") from error


def _check_same_run(first: Member, other: Member) -> None:
    """Raise ``SourceMismatch`` unless two shards differ in nothing but their number."""
    one, two = ({"command": member.record["command"], **member.identity} for member in (first, other))
    differences = find_differences(one, two)
    if first.config.num_shards != other.config.num_shards:
        differences["num_shards"] = (str(first.config.num_shards), str(other.config.num_shards))
    if differences:
        told = "; ".join(f"{name} is {here} here and {there} there" for name, (there, here) in differences.items())
        raise SourceMismatch(f"{other.path}: is no shard of the run that {first.path} is a shard of: {told}")


def _check_complete(members: Sequence[Member]) -> None:
    count = members[0].config.num_shards or 0
    by_number: dict[int, Member] = {}
    for member in members:
        other = by_number.setdefault(member.index, member)
        if other is not member:
            raise UsageError(
                f"{other.path} and {member.path}: both hold shard {member.index} of {count}, whose rows would count "
                f"twice; leave one out"
            )
    missing = [str(number) for number in range(count) if number not in by_number]
    if missing:
        raise UsageError(
            f"of {count} shards these are missing: {list_some(missing)}; make them, and name their folders"
        )


@dataclass(frozen=True)
class Whole:
    """The whole dataset of an array, in the form that its command reads.

    Attributes:
        config: options of the whole run.
        table: the dataset as a table.
        pairs: its rows, of score and displacement.
        groups: its rows, of rollouts.
        prompts: its rows, of capture.
        inputs: what displacement reads besides.
    """

    config: ArrayOptions
    table: Table
    pairs: Sequence[PreferencePair] = ()
    groups: Sequence[RolloutGroup] = ()
    prompts: Sequence[LabelledPrompt] = ()
    inputs: Inputs | None = None


def read_whole(array: Array, out: Path, data: str | list[str] | None, held: ExitStack) -> Whole:
    """Read the dataset again, as one run would have read it whole.

    Args:
        array: the shards.
        out: folder of the whole run.
        data: where the dataset lies, if not where it lay for the shards.
        held: keeps files open whose rows are read when they are asked for.

    Raises:
        SourceMismatch: it is not the dataset that the shards were made from.
        UsageError: its rows came from memory or from standard input.
    """
    first = array.members[0]
    source = check_readable(data or first.record.get("config", {}).get("data"), first.path)
    config = replace(first.config, shard_index=None, num_shards=None, out=out, data=source)
    whole = _read_rows(config, held)
    for member in array.members:
        known = _find_data_hash(member)
        if known is not None and known != whole.table.sha256:
            raise SourceMismatch(
                f"{whole.table.path}: is not the dataset that {member.path} was made from; if that lies elsewhere now, "
                f"name it with --data"
            )
    return whole


def _find_data_hash(member: Member) -> str | None:
    """Hash of the dataset of a shard; None for a store without rows."""
    data = member.record.get("data")
    if isinstance(data, list):
        return str(data[0]["sha256"]) if data and "sha256" in data[0] else None
    return str(data["sha256"]) if isinstance(data, dict) and "sha256" in data else None


def _read_rows(config: ArrayOptions, held: ExitStack) -> Whole:
    if isinstance(config, ScoreConfig):
        table, pairs = read_data(config, held)
        return Whole(config, table, pairs=pairs)
    if isinstance(config, DisplacementConfig):
        inputs = read_rows(config, held)
        return Whole(config, inputs.table, pairs=inputs.pairs, inputs=inputs)
    if isinstance(config, RolloutsConfig):
        table, groups = read_rollouts(config)
        return Whole(config, table, groups=groups)
    if isinstance(config, CaptureConfig):
        table, prompts = read_texts(config, held)
        return Whole(config, table, prompts=prompts)
    raise TypeError(f"no array is made with {type(config).__name__}")


def check_apart(array: Array, out: Path) -> None:
    """Raise ``UsageError`` where the whole run would be written into one of its shards."""
    inside = next((member for member in array.members if os.path.realpath(member.path) == os.path.realpath(out)), None)
    if inside is not None:
        raise UsageError(f"{out}: holds shard {inside.index}, which stays as it is; choose another --out")


def check_ids(member: Member, found: Sequence[object], expected: Sequence[object]) -> None:
    """Raise ``SourceMismatch`` unless a shard has the rows of the dataset that are its own."""
    if list(found) != list(expected):
        raise SourceMismatch(
            f"{member.path}: its rows are not those of shard {member.index} of {member.config.num_shards} of the "
            f"dataset, or have other ids; make it with the options of the other shards"
        )
