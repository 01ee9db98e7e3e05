"""Which rows are compared: all of them, a category, all but one, beside a control; and their draws."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.prompts import label_name
from probing.data.tables import Table
from probing.errors import DataInvalid
from probing.runs.clusters.config import LEAST_ROWS, ClustersConfig
from probing.runs.clusters.data import labels_of
from probing.runs.common.groups import folds_of, join_groups, text_units, values_to_split
from probing.runs.common.states import Prompts
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.permutation import permute_labels
from probing.types import LabelledPrompt, Problem

ALL, CATEGORY, WITHOUT, CONTROL = "all", "category", "without category", "control"


MOST_CATEGORIES = 50
"""That are compared on their own; a column of ids is no column of categories."""
LEAST_HELD_OUT = 3
"""Rows of each label in a fold that is judged on its own."""


@dataclass(frozen=True, eq=False)
class View:
    """Rows that are compared with each other.

    Attributes:
        kind: ALL, CATEGORY, WITHOUT or CONTROL.
        name: of the category, otherwise empty.
        index: of its rows among all.
        codes: cluster of each.
        clusters: names of the labels.
    """

    kind: str
    name: str
    index: NDArray[np.int64]
    codes: NDArray[np.int16]
    clusters: list[str]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that have states in every model: those of the data, then those of the control.

    Attributes:
        prompts: all of them.
        of_data: how many are of the data.
        labels: of each, by name.
        units: rows of one unit are drawn together.
        folds: of the rows of the data; None where that cannot be, for ``why_no_folds``.
        views: what is compared.
        skipped: views that cannot be, and why.
        problems: rows of the data that are left out.
        control_problems: of the control.
    """

    prompts: list[LabelledPrompt]
    of_data: int
    labels: NDArray[np.str_]
    units: NDArray[np.int64]
    folds: NDArray[np.int64] | None
    why_no_folds: str
    views: list[View]
    skipped: dict[str, str]
    problems: dict[str, Problem]
    control_problems: dict[str, Problem]

    def relabelings(self, view: View, count: int, seed: int) -> NDArray[np.int16]:
        """Permutations of a view's labels, [row draw]."""
        return np.ascontiguousarray(permute_labels(view.codes, self.units[view.index], count, seed).T)

    def can_resample(self, view: View) -> bool:
        """Whether the rows of every label are of two units: those of one vary in no resample."""
        units = self.units[view.index]
        return all(len(np.unique(units[view.codes == code])) > 1 for code in range(len(view.clusters)))

    def weights(self, count: int, seed: int) -> NDArray[np.int16]:
        """Bootstrap resamples of all rows, [row draw]; the same for every model and view."""
        return np.ascontiguousarray(draw_bootstrap_weights(self.units, count, seed).T.astype(np.int16))


def rows_of(
    config: ClustersConfig,
    data: tuple[Table, list[LabelledPrompt]],
    control: tuple[Table, list[LabelledPrompt]] | None,
    seen: Sequence[Prompts],
    controls: Sequence[Prompts],
) -> Rows:
    """The rows that every model has states of.

    Args:
        config: the options.
        data: as it was read.
        control: likewise.
        seen: states of the data, of every model.
        controls: of the control.

    Raises:
        DataInvalid: a label has fewer than two rows.
    """
    names = labels_of(config, data[1])
    kept, problems = _common(names, data[1], seen)
    others, control_problems = ([], {}) if control is None else _common(names, control[1], controls)
    prompts = kept + others
    values = _values(config, data, kept)
    if values is not None and control is not None:
        values += _values(config, control, others) or []
    units = np.array(join_groups(text_units(prompts), values))
    labels = np.array([label_name(prompt) for prompt in prompts])
    counts = Counter(labels[: len(kept)].tolist())
    for name in names:
        if counts[name] < LEAST_ROWS:
            raise DataInvalid(
                f"{data[0].path}: {counts[name]} rows with the label '{name}' could be read; a cluster needs "
                f"{LEAST_ROWS}. Name the labels to compare with --labels"
            )
    views, skipped = _views(prompts, labels, len(kept))
    folds, why = _folds(config, text_units(kept), None if values is None else values[: len(kept)], labels[: len(kept)])
    return Rows(prompts, len(kept), labels, units, folds, why, views, skipped, problems, control_problems)


def _common(
    names: Sequence[str], prompts: Sequence[LabelledPrompt], seen: Sequence[Prompts]
) -> tuple[list[LabelledPrompt], dict[str, Problem]]:
    """Rows of the labels that are compared which have states in every model, and what is wrong with the others."""
    problems: dict[str, Problem] = {}
    for each in seen:
        problems |= {id: problem for id, problem in each.problems.items() if id not in problems}
    for prompt in prompts:
        if label_name(prompt) not in names and prompt.label is not None:
            problems.setdefault(prompt.id, Problem(prompt.id, "other_label", f"the label {label_name(prompt)}"))
    return [prompt for prompt in prompts if prompt.id not in problems], problems


def _values(
    config: ClustersConfig, data: tuple[Table, list[LabelledPrompt]], kept: Sequence[LabelledPrompt]
) -> list[str] | None:
    values = values_to_split(config, *data)
    if values is None:
        return None
    by_id = {prompt.id: value for prompt, value in zip(data[1], values, strict=True)}
    return [by_id[prompt.id] for prompt in kept]


def categories_of(prompts: Sequence[LabelledPrompt]) -> NDArray[np.str_]:
    """The category of every row, empty where it has none."""
    return np.array([prompt.category or "" for prompt in prompts])


def _views(
    prompts: Sequence[LabelledPrompt], labels: NDArray[np.str_], of_data: int
) -> tuple[list[View], dict[str, str]]:
    """Everything that is compared.

    Rows of a category are compared with each other if they have every label; for a label that a category lacks, all
    rows of it take part. The control's rows take the place of all others of their labels.
    """
    rows = np.arange(len(prompts))
    mine = rows < of_data
    categories = categories_of(prompts)
    asked: list[tuple[str, str, NDArray[np.bool_]]] = [(ALL, "", mine)]
    views, skipped = [], {}
    sizes = Counter(categories[:of_data].tolist())
    del sizes[""]
    names = sorted(name for name, _ in sizes.most_common(MOST_CATEGORIES) if sizes[name] >= LEAST_ROWS)
    if len(names) < len(sizes):
        skipped[f"{len(sizes) - len(names)} of {len(sizes)} categories"] = (
            f"fewer than {LEAST_ROWS} rows, or not among the {MOST_CATEGORIES} largest"
        )
    if len(sizes) > 1:
        for name in names:
            own = mine & (categories == name)
            asked.append((CATEGORY, name, own | (mine & ~np.isin(labels, np.unique(labels[own])))))
        asked += [(WITHOUT, name, mine & (categories != name)) for name in names]
    if of_data < len(prompts):
        asked.append((CONTROL, "", ~mine | (mine & ~np.isin(labels, np.unique(labels[~mine])))))
    everything = np.unique(labels[:of_data])
    for kind, name, chosen in asked:
        index = rows[chosen]
        clusters, codes, counts = np.unique(labels[index], return_inverse=True, return_counts=True)
        title = f"{kind} {name}".strip()
        if len(clusters) < len(everything):
            skipped[title] = f"no row has the label '{np.setdiff1d(everything, clusters)[0]}'"
        elif counts.min() < LEAST_ROWS:
            skipped[title] = f"only one row has the label '{clusters[counts.argmin()]}'"
        else:
            views.append(View(kind, name, index, codes.astype(np.int16), clusters.tolist()))
    return views, skipped


def _folds(
    config: ClustersConfig, units: list[int], values: list[str] | None, labels: NDArray[np.str_]
) -> tuple[NDArray[np.int64] | None, str]:
    """Folds of the data's rows, or why there are none."""
    try:
        folds: Any = folds_of(config, units, values, "rows", "text")[0]
    except DataInvalid as error:
        return None, str(error)
    for name in np.unique(labels):
        least = np.bincount(folds[labels == name], minlength=config.folds).min()
        if least < LEAST_HELD_OUT:
            return (
                None,
                f"a fold has {least} rows with the label '{name}' and needs {LEAST_HELD_OUT}; take fewer --folds",
            )
    return folds, ""
