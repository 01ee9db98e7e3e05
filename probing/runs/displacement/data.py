"""The inputs of a comparison: pairs with their groups and shares of raters, and checkpoints in a folder."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from probing.data.columns import column_values
from probing.data.tables import Table
from probing.errors import DataInvalid, UsageError
from probing.models.checkpoints import check_adapter, check_checkpoint, is_adapter
from probing.runs.common.datasets import read_pairs
from probing.runs.common.inputs import check_models, list_on_disk
from probing.runs.displacement.config import DisplacementConfig
from probing.tokens.tokenizer_files import brings_tokenizer
from probing.types import PreferencePair


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run besides its models.

    Attributes:
        table: the dataset as a table.
        pairs: pairs of the dataset.
        groups: value of each pair by which the summary is grouped; None where it is not grouped.
        shares: share of raters, for each pair, who preferred the chosen response; None where they are not known.
        steps: checkpoints in order, with their steps; None where one policy is compared.
    """

    table: Table
    pairs: Sequence[PreferencePair]
    groups: Sequence[object] | None = None
    shares: Sequence[float] | None = None
    steps: Sequence[tuple[int, Path]] | None = None


def check_compared(config: DisplacementConfig) -> None:
    """Raise for models and adapters that can be seen to be wrong without loading them.

    Raises:
        UsageError: an adapter was given as the reference and another one to put onto it.
        ModelInvalid: a model or an adapter is not where it is said to be.
    """
    check_models(config, [config.reference], config.reference_revision)
    if config.reference_adapter is not None and is_adapter(config.reference):
        raise UsageError(f"{config.reference}: is an adapter itself; give the model, and one adapter for the reference")
    adapters = [name for name in (config.reference_adapter, config.adapter) if name is not None]
    for policy in list_on_disk([config.policy or ""]):
        if is_adapter(policy):
            adapters.append(policy)
        elif policy:
            check_checkpoint(policy, config.policy_revision, tokenized=not brings_tokenizer(policy))
    for name in adapters:
        check_adapter(name)


def read_inputs(config: DisplacementConfig, held: ExitStack | None = None) -> Inputs:
    """Read the dataset, its columns, and the folder of checkpoints. Args: see ``read_pairs``.

    Raises:
        DataInvalid, UsageError: a file, a column or a folder that is named is not what it should be.
    """
    steps = find_steps(Path(config.steps).expanduser()) if config.steps is not None else None
    return replace(read_rows(config, held), steps=steps)


def read_rows(config: DisplacementConfig, held: ExitStack | None = None) -> Inputs:
    """Read the dataset and its columns, without the folder of checkpoints. Args: see ``read_pairs``.

    Raises:
        DataInvalid, UsageError: a file or a column that is named is not what it should be.
    """
    table, pairs = read_pairs(config, held)
    # A shard without rows has no columns either.
    groups = column_values(table, config.group_column) if config.group_column and pairs else None
    shares = rater_shares(table, config.rater_share_column) if config.rater_share_column and pairs else None
    return Inputs(table, pairs, groups, shares)


def rater_shares(table: Table, name: str) -> list[float]:
    """The share of raters who preferred the chosen response, of each pair.

    Raises:
        DataInvalid: a share is not a number between 0 and 1; names the row.
    """
    shares: list[float] = []
    for index, value in enumerate(column_values(table, name)):
        share = _to_number(value)
        if share is None or not 0 <= share <= 1:
            raise DataInvalid(f"{table.where(index)}: '{name}' must be a share of raters, 0 to 1, not {value!r}")
        shares.append(share)
    return shares


def _to_number(value: object) -> float | None:
    """A number, also where a CSV file gives it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def find_steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints in a folder whose names end in a number, by that number; step 0 is the reference and left out.

    Raises:
        UsageError: there is no such folder, it holds no checkpoints, or two of them have the same number.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of checkpoints")
    steps: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        digits = path.name[len(path.name.rstrip("0123456789")) :]
        if not path.is_dir() or not digits or int(digits) == 0:
            continue
        if int(digits) in steps:
            raise UsageError(f"{folder}: {steps[int(digits)].name} and {path.name} are the same step")
        steps[int(digits)] = path
    if not steps:
        raise UsageError(f"{folder}: holds no folders whose names end in the number of a step, like checkpoint-500")
    return sorted(steps.items())
