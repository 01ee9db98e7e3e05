"""The label that a probe says yes to; whether there are enough groups."""

from collections.abc import Sequence
from typing import Any

from probing.data.prompts import label_name
from probing.data.tables import Table
from probing.errors import DataInvalid, UsageError
from probing.runs.common.groups import folds_of, refuse_twin_labels, text_units, values_to_split
from probing.runs.probe.config import ProbeConfig
from probing.types import LabelledPrompt


def positive_label(config: ProbeConfig, path: str, prompts: Sequence[LabelledPrompt]) -> Any:
    """The label that a probe says yes to: the one that was named, or true, or 1, or the later one in the alphabet.

    Raises:
        UsageError: there are not two labels and none was named, or the one named does not occur.
        DataInvalid: two labels differ in white space only.
    """
    refuse_twin_labels(path, prompts)
    known = {prompt.label for prompt in prompts if prompt.label is not None}
    named = {label_name(prompt): prompt.label for prompt in prompts if prompt.label is not None}
    shown = ", ".join(sorted(named)[:10])
    if config.positive is not None:
        if config.positive not in named:
            raise UsageError(f"{path}: no row has the label '{config.positive}'; there are {shown}")
        if len(known) < 2:
            raise DataInvalid(f"{path}: every row has the label '{config.positive}'; a probe needs two")
        return named[config.positive]
    if len(known) < 2:
        found = f"every row has the label '{shown}'" if known else "no row has a label"
        raise UsageError(f"{path}: {found}; a probe tells two apart")
    if len(known) > 2:
        raise UsageError(
            f"{path}: there are {len(known)} labels ({shown}); a probe tells two apart: name the one it says yes to "
            f"with --positive, all others are no"
        )
    return max(known, key=lambda label: (not isinstance(label, str), label))


def check_groups(config: ProbeConfig, prompts: Sequence[LabelledPrompt], values: Sequence[str] | None) -> None:
    """Raise ``DataInvalid`` for too few groups before anything is captured."""
    labelled = [at for at, prompt in enumerate(prompts) if prompt.label is not None]
    units = text_units([prompts[at] for at in labelled])
    folds_of(config, units, None if values is None else [values[at] for at in labelled], "rows", "text")


def check_rows(
    config: ProbeConfig, data: tuple[Table, list[LabelledPrompt]], fresh: tuple[Table, list[LabelledPrompt]] | None
) -> None:
    """Raise, before anything is loaded, for labels or groups that allow no probe.

    Raises:
        UsageError, DataInvalid: see ``positive_label``, ``check_labels`` and ``values_to_split``.
    """
    table, prompts = data
    positive_label(config, table.path, prompts)
    if fresh is not None and config.positive is None:
        check_labels(fresh[0].path, fresh[1], prompts)
    check_groups(config, prompts, values_to_split(config, table, prompts))


def check_labels(path: str, fresh: Sequence[LabelledPrompt], prompts: Sequence[LabelledPrompt]) -> None:
    """Raise unless fresh rows have the labels of the data: another would be taken for a no.

    Raises:
        DataInvalid: a fresh row has another label; names the first one.
    """
    known = {prompt.label for prompt in prompts if prompt.label is not None}
    other = next((prompt for prompt in fresh if prompt.label is not None and prompt.label not in known), None)
    if other is not None:
        raise DataInvalid(
            f"{path}: row '{other.id}' has the label {other.label!r}, which no row of the data has "
            f"({', '.join(sorted(map(repr, known)))}); name the label that a probe says yes to with --positive if all "
            f"others are no"
        )
