"""Linear heads on the states of a prompt that tell the model's own decision, beside heads that tell less."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.prompts import LabelledRows, fit_splits, fit_where_states_differ, measure_rows
from probing.probes.supervised import LinearProbe, fit_logistic
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.folds import LEAST_FOLDS, Splits, make_folds
from probing.statistics.groups import number_values
from probing.statistics.intervals import auroc_interval, null_interval, percentile_interval

Array = NDArray[np.float64]
DECISION, KIND = "decision", "kind"
WITHIN = {"within_harmful": True, "within_harmless": False}
"""Heads that tell the decision among prompts of one kind, with the kind."""
ACROSS = "across"
GOOD_F1 = 0.8
"""The agreement that is published as good (arXiv 2501.16534)."""
NEAR = 0.95
"""Share of the best agreement that counts as all but the best."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a model does with prompts.

    Attributes:
        refused: whether the model refuses each.
        harmful: what each is.
        units: prompts of one unit are kept in one fold.
        sources: where each comes from.
    """

    refused: Bool[np.ndarray, " row"]
    harmful: Bool[np.ndarray, " row"]
    units: Int[np.ndarray, " row"]
    sources: Sequence[str]


@dataclass(frozen=True, eq=False)
class HeadTask:
    """What one head is trained to tell, and on which rows.

    Attributes:
        rows: numbers of the rows.
        labels: what is to be told of each, with units and splits.
    """

    rows: NDArray[np.int64]
    labels: LabelledRows


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """The heads that are fitted at every place.

    Attributes:
        decisions: the prompts.
        tasks: heads by name: ``DECISION`` (refused or not), ``KIND`` (harmful or not), and those ``WITHIN`` a kind.
        why_not: why a head cannot be fitted, by name.
        sources: names of the sources that are left out in turn.
        source_of: number of each row's source.
        refits: number of permutations of the labels.
        seed: seed of the permutations.
        inverse_penalty: C of the logistic regression.
    """

    decisions: Decisions
    tasks: Mapping[str, HeadTask]
    why_not: Mapping[str, str]
    sources: tuple[str, ...]
    source_of: NDArray[np.int64]
    refits: int
    seed: int
    inverse_penalty: float

    def labelings(self, name: str) -> NDArray[np.bool_]:
        """Labels of a head, then the permutations of them, [labeling row]; none for the kind, which is a control."""
        return self.tasks[name].labels.labelings(0 if name == KIND else self.refits, self.seed)


def plan_heads(
    decisions: Decisions, folds: int = 5, *, refits: int = 20, seed: int = 0, inverse_penalty: float = 1.0
) -> HeadPlan:
    """Folds and labels of every head.

    Args:
        decisions: the prompts.
        folds: number of folds; fewer are taken within one kind where its prompts ask for it.
        refits: number of permutations of the labels.
        seed: seed of folds and permutations.
        inverse_penalty: C of the logistic regression.

    Raises:
        ValueError: the model refuses too few or too many of the prompts, or there are fewer units than folds.
    """
    refused, harmful, units = decisions.refused, decisions.harmful, decisions.units
    every = np.arange(len(refused))
    reason = _find_why_not(refused, units, "prompts")
    if reason:
        raise ValueError(reason)
    assigned = make_folds(units, folds, seed, 2 * refused + harmful)
    tasks = {DECISION: HeadTask(every, LabelledRows(refused, units, Splits.of(assigned)))}
    why_not = {}
    if _holds_both(harmful, assigned):
        tasks[KIND] = HeadTask(every, LabelledRows(harmful, units, Splits.of(assigned)))
    else:
        why_not[KIND] = "the folds do not hold both kinds of prompts"
    for name, kind in WITHIN.items():
        rows = np.flatnonzero(harmful == kind)
        reason = _find_why_not(refused[rows], units[rows], "harmful prompts" if kind else "harmless prompts")
        if not reason:
            count = min(folds, len(np.unique(units[rows])))
            own = make_folds(units[rows], count, seed, refused[rows])
            reason = "" if _holds_both(refused[rows], own) else "the folds do not hold both decisions"
        if reason:
            why_not[name] = reason
        else:
            tasks[name] = HeadTask(rows, LabelledRows(refused[rows], units[rows], Splits.of(own)))
    if not _holds_both(refused, assigned):
        raise ValueError("some folds would leave one decision only to train on; take fewer folds")
    sources, source_of = _number_sources(decisions)
    if len(sources) < 2:
        why_not[ACROSS] = f"all prompts come from one source ({sources[0]})"
    return HeadPlan(
        decisions,
        tasks=tasks,
        why_not=why_not,
        sources=sources,
        source_of=source_of,
        refits=refits,
        seed=seed,
        inverse_penalty=inverse_penalty,
    )


def _find_why_not(refused: NDArray[np.bool_], units: NDArray[np.int64], what: str) -> str:
    """Why a decision cannot be told from these rows, with their counts; empty where it can."""
    counts = [len(np.unique(units[refused == side])) for side in (True, False)]
    if min(counts) >= LEAST_FOLDS:
        return ""
    return (
        f"of {len(refused)} {what} the model refuses {int(refused.sum())} and complies with {int((~refused).sum())}; "
        f"{LEAST_FOLDS} of either, with different texts, are needed to tell one from the other"
    )


def _holds_both(labels: NDArray[np.bool_], folds: NDArray[np.int64]) -> bool:
    """Whether every split of nested cross-validation trains on both labels."""
    train = Splits.of(folds).train
    return all(labels[rows].any() and not labels[rows].all() for rows in train.T)


def _number_sources(decisions: Decisions) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the sources and the number of each row's; rows of one unit are all of the source of the first."""
    first: dict[int, str] = {}
    names = [first.setdefault(int(unit), name) for unit, name in zip(decisions.units, decisions.sources, strict=True)]
    numbers = np.array(number_values(names), dtype=np.int64)
    return tuple(dict.fromkeys(names)), numbers


def fit_heads(states: Float[Tensor, "row width"], plan: HeadPlan) -> dict[str, Array]:
    """Logits of every head on rows that it has not seen, at one place.

    Returns:
        For each head of the plan ``NAME.logits`` [labeling row] (of the labels, then of each permutation of them);
        ``inner`` [fold], by which a place is chosen; ``across.logits`` [row], each by the head that saw no row of its
        source, NaN where the others hold one decision only.
    """
    centred = states.double() - states.double().mean(dim=0)

    def fit(rows: Tensor, targets: Tensor) -> LinearProbe:
        return fit_logistic(rows, targets, plan.inverse_penalty)

    arrays: dict[str, Array] = {}
    for name, task in plan.tasks.items():
        own, labels, splits = centred[torch.from_numpy(task.rows)], plan.labelings(name), task.labels.splits.without_all
        # Probes without two folds are needed only where a place is chosen, and for the labels themselves.
        read = fit_splits(fit, own, splits if name == DECISION else splits.without_pairs, labels[:1])
        drawn = [fit_splits(fit, own, splits.without_pairs, labels[1:]).logits] if len(labels) > 1 else []
        arrays[f"{name}.logits"] = np.concatenate([read.logits, *drawn])
        if name == DECISION:
            arrays["inner"] = read.inner[0]
    refused = plan.decisions.refused
    across = np.full(len(refused), np.nan)
    for number in range(len(plan.sources) if ACROSS not in plan.why_not else 0):
        held = plan.source_of == number
        if refused[~held].all() or not refused[~held].any():
            continue
        targets = torch.from_numpy(refused[~held, None].astype(np.float64)).to(centred.device)
        probe = fit_where_states_differ(fit, centred[torch.from_numpy(~held)], targets)
        across[held] = probe.logits(centred[torch.from_numpy(held)])[:, 0].double().cpu().numpy()
    return {**arrays, f"{ACROSS}.logits": across}


def measure_f1(logits: Array, labels: NDArray[np.bool_], weights: Array | None = None) -> Array:
    """F1 of the positive class, which a logit above 0 stands for: twice the hits over twice the hits and all errors.

    Args:
        logits: [row].
        labels: [row].
        weights: number of times that each row counts, [weighting row]; by default once.

    Returns:
        [weighting]; NaN where nothing is positive and nothing is said to be.
    """
    counts = np.ones((1, len(logits))) if weights is None else weights
    said = logits > 0
    hits, errors = (counts[:, rows].sum(axis=1) for rows in (said & labels, said != labels))
    with np.errstate(invalid="ignore"):
        score: Array = 2 * hits / (2 * hits + errors)
    return score


def judge_heads(arrays: Mapping[str, Array], plan: HeadPlan, resamples: int) -> dict[str, float]:
    """F1 and AUROC of every head with intervals and, under permuted labels, the middle 95 %, at one place.

    Columns begin with the name of the head. ``kind_agreement`` is the F1 against the decision of the head that was
    trained to tell the kind, and ``above_kind`` by how much the head of the decision is above that.

    Args:
        arrays: from ``fit_heads``.
        plan: the heads.
        resamples: number of bootstrap replicates over units.
    """
    found: dict[str, float] = {}
    for name, task in plan.tasks.items():
        found |= judge_task(name, arrays[f"{name}.logits"], task, plan, resamples)
    refused, units = plan.decisions.refused, plan.decisions.units
    weights = draw_bootstrap_weights(units, resamples, plan.seed)
    if KIND in plan.tasks:
        own, kind = (arrays[f"{name}.logits"][0] for name in (DECISION, KIND))
        both = [np.concatenate([measure_f1(each, refused), measure_f1(each, refused, weights)]) for each in (own, kind)]
        found |= _describe_f1("kind_agreement", both[1], units[refused])
        low, high = percentile_interval(both[0][1:] - both[1][1:], len(np.unique(units)))
        found |= {"above_kind": float(both[0][0] - both[1][0]), "above_kind_low": low, "above_kind_high": high}
    across = arrays[f"{ACROSS}.logits"]
    known = np.isfinite(across)
    if known.any() and refused[known].any():
        values = [measure_f1(across[known], refused[known], rows) for rows in (None, weights[:, known])]
        found |= _describe_f1(f"{ACROSS}_f1", np.concatenate(values), units[known & refused])
        found[f"{ACROSS}_rows"] = float(known.sum())
    return found


def judge_task(name: str, logits: Array, task: HeadTask, plan: HeadPlan, resamples: int) -> dict[str, float]:
    """The numbers of one head.

    Args:
        name: beginning of the columns.
        logits: held out, [labeling row].
        task: what it was trained to tell.
        plan: all heads.
        resamples: number of bootstrap replicates.
    """
    labels, units, folds = task.labels.labels, task.labels.units, task.labels.splits.folds
    weights = draw_bootstrap_weights(units, resamples, plan.seed)
    values = np.concatenate([measure_f1(logits[0], labels), measure_f1(logits[0], labels, weights)])
    found = _describe_f1(f"{name}_f1", values, units[labels])
    auroc = float(measure_rows(logits[0], labels, folds)["auroc"][0])
    replicates = measure_rows(logits[0], labels, folds, weights)["auroc"]
    couples = sum(
        min(len(np.unique(units[(folds == fold) & (labels == side)])) for side in (True, False))
        for fold in np.unique(folds)
    )
    low, high = auroc_interval(auroc, couples, replicates) or percentile_interval(replicates, len(np.unique(units)))
    found |= {f"{name}_auroc": auroc, f"{name}_auroc_low": low, f"{name}_auroc_high": high}
    drawn = plan.labelings(name)[1 : len(logits)]
    nulls = {
        "f1": [measure_f1(row, own)[0] for row, own in zip(logits[1:], drawn, strict=True)],
        "auroc": [measure_rows(row, own, folds)["auroc"][0] for row, own in zip(logits[1:], drawn, strict=True)],
    }
    for metric, draws in nulls.items() if len(drawn) else ():
        ends = zip(("low", "median", "high"), null_interval(np.array(draws)), strict=True)
        found |= {f"{name}_{metric}_labels_{end}": value for end, value in ends}
    return found


def _describe_f1(name: str, values: Array, positive: NDArray[np.int64]) -> dict[str, float]:
    """An F1 with its interval, from its value and its replicates, one behind the other."""
    # Few errors make percentiles of the bootstrap too narrow, or a point. That of an AUROC of few couples serves:
    # log-odds with the error of the replicates, and Clopper and Pearson's where no replicate has any error.
    count = len(np.unique(positive))
    low, high = auroc_interval(float(values[0]), count, values[1:]) or percentile_interval(values[1:], count)
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def choose_inside_folds(inner: Array, logits: Array, folds: NDArray[np.int64]) -> tuple[NDArray[np.int64], Array]:
    """The place that every fold would choose without its own rows, and what the heads there say of these.

    Args:
        inner: inner scores of the heads, [place fold].
        logits: held out, [place row].
        folds: fold of each row, [row].

    Returns:
        Number of the place that each fold chose, [fold]; logits [row].
    """
    picked = inner.argmax(axis=0)
    chosen: Array = logits[picked[folds], np.arange(len(folds))]
    return picked, chosen


def judge_sources(logits: Array, plan: HeadPlan) -> list[dict[str, object]]:
    """One row a source: agreement of the head that saw none of its rows.

    Args:
        logits: ``across.logits`` at a place, [row].
        plan: the heads.
    """
    refused = plan.decisions.refused
    rows: list[dict[str, object]] = []
    for number, name in enumerate(plan.sources):
        own = plan.source_of == number
        row: dict[str, object] = {"source": name, "prompts": int(own.sum()), "refused": int(refused[own].sum())}
        known = bool(np.isfinite(logits[own]).all())
        right = (logits[own] > 0) == refused[own]
        row |= {
            "f1": float(measure_f1(logits[own], refused[own])[0]) if known else float("nan"),
            "accuracy": float(right.mean()) if known else float("nan"),
        }
        rows.append(row)
    return rows


def find_depths(depths: Sequence[float], f1: Sequence[float]) -> dict[str, float]:
    """The least depth at which F1 is at least .8, and that at which it is at least 95 % of its maximum.

    Args:
        depths: share of the model below each place, in ascending order.
        f1: agreement at each; NaN does not count.

    Returns:
        ``good``, ``near_best``, ``best`` (the depth of the maximum) and ``best_f1``; NaN where there is none.
    """
    known = [(depth, score) for depth, score in zip(depths, f1, strict=True) if np.isfinite(score)]
    nan = float("nan")
    if not known:
        return {"good": nan, "near_best": nan, "best": nan, "best_f1": nan}
    top = max(score for _, score in known)
    return {
        "good": next((depth for depth, score in known if score >= GOOD_F1), nan),
        "near_best": next(depth for depth, score in known if score >= NEAR * top),
        "best": next(depth for depth, score in known if score == top),
        "best_f1": top,
    }
