"""The labels that are compared."""

from collections import Counter
from collections.abc import Sequence

from probing.data.prompts import label_name
from probing.data.tables import Table
from probing.errors import UsageError
from probing.runs.clusters.config import LEAST_ROWS, ClustersConfig
from probing.runs.common.groups import refuse_twin_labels
from probing.types import LabelledPrompt


def choose_labels(config: ClustersConfig, prompts: Sequence[LabelledPrompt]) -> list[str]:
    """Names of the labels that are compared: those that were chosen, or all of the data."""
    chosen = list(dict.fromkeys(config.label_names))
    return chosen or sorted({label_name(prompt) for prompt in prompts if prompt.label is not None})


def check_labels(
    config: ClustersConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    control: tuple[Table, list[LabelledPrompt]] | None,
) -> None:
    """Raise unless there are two labels to compare, each of two rows, and the control has one of them.

    Raises:
        UsageError: too few labels or rows; names the labels of the data.
        DataInvalid: two labels differ in white space only.
    """
    for each, rows in ((table, prompts), *([] if control is None else [control])):
        refuse_twin_labels(str(each.path), rows)
    counts = Counter(label_name(prompt) for prompt in prompts if prompt.label is not None)
    names, known = choose_labels(config, prompts), ", ".join(sorted(counts)[:10])
    never = next((name for name in names if not counts[name]), None)
    if never is not None:
        raise UsageError(f"{table.path}: no row has the label '{never}'; there are {known}")
    if len(names) < 2:
        only = f"--labels names '{names[0]}' only, of {known}" if config.labels else f"every row has '{names[0]}'"
        raise UsageError(f"{table.path}: there must be two labels to compare, and {only}")
    rare = next((name for name in names if counts[name] < LEAST_ROWS), None)
    if rare is not None:
        raise UsageError(
            f"{table.path}: only one row has the label '{rare}'; a cluster needs {LEAST_ROWS}. Name the labels to "
            f"compare with --labels"
        )
    if control is not None and not any(label_name(p) in names for p in control[1] if p.label is not None):
        raise UsageError(f"{control[0].path}: no row has one of the labels {', '.join(names[:10])}")
