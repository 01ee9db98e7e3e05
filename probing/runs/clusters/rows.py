"""The rows that are compared: all of them, a category, all but one, beside a control; with states and replicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.data.prompts import label_name
from probing.data.tables import Table
from probing.errors import DataInvalid
from probing.models.devices import choose_device
from probing.runs.clusters.config import LEAST_ROWS, ClustersConfig
from probing.runs.clusters.data import choose_labels
from probing.runs.common.groups import folds_of, join_groups, text_units, values_to_split
from probing.runs.common.results import ALL
from probing.runs.common.states import Prompts, choose_places
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.permutation import permute_labels
from probing.types import LabelledPrompt, Problem

CATEGORY, WITHOUT, CONTROL = "category", "without category", "control"
HELD_OUT, DRIFT = "held out", "drift"
"""Kinds of parts that are of no set of rows."""
MOST_CATEGORIES = 50
"""Largest number of categories that are compared one by one; a column of ids is no column of categories."""
LEAST_HELD_OUT = 3
"""Least number of rows of each label in a fold that is evaluated by itself."""
KEPT_BYTES = 2**28
"""Bytes of the permutations that are kept from one place to the next."""
Part = tuple[int, str, str]
"""A unit of work: number of the model, kind ("" for the sets of rows, ``HELD_OUT``, ``DRIFT``), place."""


@dataclass(frozen=True, eq=False)
class View:
    """Rows that are compared with each other.

    Attributes:
        kind: ALL, CATEGORY, WITHOUT or CONTROL.
        name: name of the category, otherwise empty.
        index: numbers of the rows of this view among all.
        codes: cluster of each of these rows.
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
        of_data: number of rows of the data; they come first.
        labels: name of the label of each row.
        units: rows of one unit are drawn together.
        folds: folds of the rows of the data; None where that cannot be, for ``why_no_folds``.
        views: sets of rows that are compared.
        skipped: views that cannot be, and why.
        problems: rows of the data that are left out.
        control_problems: rows of the control that are left out.
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
        """Whether the rows of every label are of two units: labels of one unit do not vary between replicates."""
        units = self.units[view.index]
        return all(len(np.unique(units[view.codes == code])) > 1 for code in range(len(view.clusters)))

    def weights(self, count: int, seed: int) -> NDArray[np.int16]:
        """Count of every row in each bootstrap replicate, [row draw]; the same for every model and view."""
        return np.ascontiguousarray(draw_bootstrap_weights(self.units, count, seed).T.astype(np.int16))


def choose_rows(
    config: ClustersConfig,
    data: tuple[Table, list[LabelledPrompt]],
    control: tuple[Table, list[LabelledPrompt]] | None,
    seen: Sequence[Prompts],
    controls: Sequence[Prompts],
) -> Rows:
    """Choose the rows that every model has states of.

    Args:
        config: the options.
        data: rows of the data as they were read.
        control: rows of the control as they were read.
        seen: states of the data, of every model.
        controls: states of the control, of every model; empty without a control.

    Raises:
        DataInvalid: a label has fewer than two rows.
    """
    names = choose_labels(config, data[1])
    kept, problems = _keep_common(names, data[1], seen)
    others, control_problems = ([], {}) if control is None else _keep_common(names, control[1], controls)
    prompts = kept + others
    values = _find_values(config, data, kept)
    if values is not None and control is not None:
        values += _find_values(config, control, others) or []
    units = np.array(join_groups(text_units(prompts), values))
    labels = np.array([label_name(prompt) for prompt in prompts])
    counts = Counter(labels[: len(kept)].tolist())
    for name in names:
        if counts[name] < LEAST_ROWS:
            raise DataInvalid(
                f"{data[0].path}: {counts[name]} rows with the label '{name}' could be read; a cluster needs "
                f"{LEAST_ROWS}. Name the labels to compare with --labels"
            )
    views, skipped = _make_views(prompts, labels, len(kept))
    folds, why = _make_folds(
        config, text_units(kept), None if values is None else values[: len(kept)], labels[: len(kept)]
    )
    return Rows(
        prompts=prompts,
        of_data=len(kept),
        labels=labels,
        units=units,
        folds=folds,
        why_no_folds=why,
        views=views,
        skipped=skipped,
        problems=problems,
        control_problems=control_problems,
    )


def _keep_common(
    names: Sequence[str], prompts: Sequence[LabelledPrompt], seen: Sequence[Prompts]
) -> tuple[list[LabelledPrompt], dict[str, Problem]]:
    """Rows with a compared label and states in every model, and the problems of the others."""
    problems: dict[str, Problem] = {}
    for each in seen:
        problems |= {id: problem for id, problem in each.problems.items() if id not in problems}
    for prompt in prompts:
        if label_name(prompt) not in names and prompt.label is not None:
            problems.setdefault(prompt.id, Problem(prompt.id, "other_label", f"the label {label_name(prompt)}"))
    return [prompt for prompt in prompts if prompt.id not in problems], problems


def _find_values(
    config: ClustersConfig, data: tuple[Table, list[LabelledPrompt]], kept: Sequence[LabelledPrompt]
) -> list[str] | None:
    """The values that ``--split-by`` keeps together, of the rows that are compared."""
    values = values_to_split(config, *data)
    if values is None:
        return None
    by_id = {prompt.id: value for prompt, value in zip(data[1], values, strict=True)}
    return [by_id[prompt.id] for prompt in kept]


def categories_of(prompts: Sequence[LabelledPrompt]) -> NDArray[np.str_]:
    """The category of every row, empty where it has none."""
    return np.array([prompt.category or "" for prompt in prompts])


def _make_views(
    prompts: Sequence[LabelledPrompt], labels: NDArray[np.str_], of_data: int
) -> tuple[list[View], dict[str, str]]:
    """Make every set of rows that is compared.

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


def _make_folds(
    config: ClustersConfig, units: list[int], values: list[str] | None, labels: NDArray[np.str_]
) -> tuple[NDArray[np.int64] | None, str]:
    """Folds of the data's rows, or the reason why there are none."""
    try:
        folds = folds_of(config, units, values, "rows", "text", labels)[0]
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


class Material:
    """Rows and states from which the parts of a run are computed.

    Attributes:
        config: the options.
        device: device that the indices are computed on.
        rows: rows and views that are compared.
        seen: states of the data, of each model.
        controls: states of the control, of each model; empty without a control.
        names: names of the models.
        places: places of each model.
    """

    def __init__(
        self,
        config: ClustersConfig,
        rows: Rows,
        seen: Sequence[Prompts],
        controls: Sequence[Prompts],
        names: Sequence[str],
    ) -> None:
        self.config, self.rows, self.seen, self.controls, self.names = config, rows, seen, controls, names
        self.device = choose_device(config.device)
        self.places = [choose_places(each.store, config.places) for each in seen]
        ids = [prompt.id for prompt in rows.prompts]
        self._index = [_find_index(each, ids[: rows.of_data]) for each in seen]
        self._relabelings: dict[int, NDArray[np.integer[Any]]] = {}
        self._control_index = [_find_index(each, ids[rows.of_data :]) for each in controls]

    def states(self, model: int, place: str, control: bool = True) -> torch.Tensor:
        """[row width] of all rows, or of those of the data, in the dtype that they were captured in."""
        states = self.seen[model].store.read(place)[self._index[model]]
        if control and self.controls:
            others = self.controls[model].store.read(place)[self._control_index[model]]
            states = torch.cat((states, others))
        return states.to(self.device)

    @cached_property
    def weights(self) -> NDArray[np.int16]:
        """Number of times that every row counts in each bootstrap replicate, [row replicate]."""
        return self.rows.weights(self.config.resamples, self.config.seed)

    def relabelings(self, number: int) -> NDArray[np.integer[Any]]:
        """Permutations of the labels of a view; kept for the next place while there is room."""
        if number in self._relabelings:
            return self._relabelings[number]
        view = self.rows.views[number]
        drawn = self.rows.relabelings(view, self.config.permutations, self.config.seed)
        narrow: NDArray[np.integer[Any]] = drawn.astype(np.int8 if len(view.clusters) < 128 else np.int16)
        if narrow.nbytes + sum(each.nbytes for each in self._relabelings.values()) <= KEPT_BYTES:
            self._relabelings[number] = narrow
        return narrow

    @property
    def parts(self) -> list[Part]:
        """All parts, which are computed one by one."""
        parts: list[Part] = []
        for model, places in enumerate(self.places):
            parts += [(model, "", place) for place in places]
            if self.rows.folds is not None:
                parts.append((model, HELD_OUT, ""))
            if model:
                parts += [(model, DRIFT, place) for place in places if place in self.places[0]]
        return parts


def _find_index(seen: Prompts, ids: Sequence[str]) -> list[int]:
    at = {prompt.id: index for prompt, index in zip(seen.rows, seen.index, strict=True)}
    return [at[id] for id in ids]
