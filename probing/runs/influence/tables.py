"""Tables of influences and joint rates; every number is recomputed from the files."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.data.pairs import find_pairs
from probing.report.influence_tables import DROP_TITLE, SPREAD_TITLE, drop_worst, list_spread
from probing.report.tables import counts, estimates, extremes, quantiles
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.data import Inputs
from probing.runs.influence.parts.work import POINT, describe_direction
from probing.runs.influence.results import ALONG_COLUMN, JOINT_COLUMNS, PILOT_COLUMNS, TARGET_COLUMNS
from probing.runs.score.tables import good_units, name_intervals
from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman, estimate_share
from probing.statistics.intervals import FEW
from probing.types import Estimate

LISTED_PAIRS = 5
TENTH = 0.1


def make_tables(
    frame: pd.DataFrame, null: pd.DataFrame | None, config: InfluenceConfig, inputs: Inputs, facts: Mapping[str, Any]
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    good = (frame["status"] == "ok").to_numpy()
    scored, units = frame[good].reset_index(drop=True), good_units(frame, inputs.pairs)
    tables = {"Pairs by status": counts(facts["rows_by_status"], "status"), "Directions": list_directions(facts)}
    if "influence" in scored:
        known = [name for name in (*TARGET_COLUMNS, ALONG_COLUMN) if name in scored]
        tables["Quantiles of influence (below 0: a step on the pair lowers the target)"] = quantiles(scored, known)
        tables[DROP_TITLE] = drop_worst(scored["influence"])
        if null is not None and len(null):
            tables[SPREAD_TITLE] = list_spread(frame, null)
        tables["Pairs that lower the target most"] = list_worst(scored, "influence", inputs)
    if ALONG_COLUMN in scored:
        tables["Pairs that lower the target most along the pilot"] = list_worst(scored, ALONG_COLUMN, inputs)
    if "joint_rate" in scored:
        rates = quantiles(scored, JOINT_COLUMNS)
        tables["Quantiles of joint rates (below 0: training on all pairs lowers ln p of the response)"] = rates
        tables[f"All pairs trained together, with {name_intervals(units)}"] = estimates(measure_joint(scored, units))
    if "pilot_change" in scored:
        tables["Quantiles of what the pilot changed (ln p in nats)"] = quantiles(scored, PILOT_COLUMNS)
    if inputs.groups is not None:
        names = pd.Series([str(group) for group in inputs.groups])[good].reset_index(drop=True)
        tables[f"By group: {config.group_column}"] = compare_groups(scored, names, units)
    tables["Notes"] = pd.DataFrame({"note": [*inputs.notes, *_make_notes(scored, null, config, facts, units)]})
    return tables


def list_worst(scored: pd.DataFrame, name: str, inputs: Inputs) -> pd.DataFrame:
    """The pairs with the lowest values of a column, of those below 0, with their texts."""
    return extremes(scored[scored[name] < 0], name, partial(find_pairs, inputs.pairs), LISTED_PAIRS, highest=False)


def list_directions(facts: Mapping[str, Any]) -> pd.DataFrame:
    """Norm, length of the step and its error of every direction, part after part; and the target's value there."""
    rows = [
        (
            describe_direction(name),
            part + 1,
            entry.get("mean", math.nan),
            entry["norm"],
            entry["step"],
            entry["step_error"],
            entry["lost"],
        )
        for name, parts in facts["directions"].items()
        for part, entry in enumerate(parts)
        if entry is not None
    ]
    table = pd.DataFrame(rows, columns=["direction", "part", "target", "norm", "step", "error of the step", "lost"])
    return table if table["target"].notna().any() else table.drop(columns="target")


def measure_joint(scored: pd.DataFrame, units: NDArray[np.int64]) -> list[tuple[str, Estimate]]:
    """Means of joint rates and shares of those below 0; and how well they agree with the pilot, where there is one."""
    rows = []
    for side, rate, change in zip(("chosen", "rejected"), JOINT_COLUMNS, PILOT_COLUMNS, strict=True):
        rows.append((f"rate of ln p({side})", bootstrap_mean(scored[rate], groups=units)))
        below = (scored[rate] < 0).astype(float)
        rows.append((f"share with a rate of ln p({side}) below 0", estimate_share(below, groups=units)))
        if change in scored:
            agreement = bootstrap_spearman(scored[rate], scored[change], groups=units)
            rows.append((f"Spearman with the pilot's change of ln p({side})", agreement))
    return rows


def compare_groups(scored: pd.DataFrame, names: "pd.Series[str]", units: NDArray[np.int64]) -> pd.DataFrame:
    """What each group of pairs does: mean influence, its share of all harm and of both outer tenths; joint rates."""
    rows = []
    known = [name for name in ("influence", ALONG_COLUMN) if name in scored]
    lowest, highest = ({name: find_tenth(scored, name, best) for name in known} for best in (False, True))
    for name, part in scored.groupby(names):
        row: dict[str, Any] = {"group": name, "pairs": len(part)}
        own = units[part.index]
        if "influence" in scored:
            mean = bootstrap_mean(part["influence"], groups=own)
            row |= {"influence": mean.value, "influence low": mean.low, "influence high": mean.high}
            harm = scored["influence"].clip(upper=0).sum()
            row["share of harm"] = part["influence"].clip(upper=0).sum() / harm + 0.0 if harm else 0.0
            row["share of the worst tenth"] = share_of(lowest["influence"], part)
            row["share of the best tenth"] = share_of(highest["influence"], part)
        if "joint_rate" in scored:
            mean = bootstrap_mean(part["joint_rate"], groups=own)
            row |= {"joint rate": mean.value, "joint low": mean.low, "joint high": mean.high}
            row["joint below 0"] = float((part["joint_rate"] < 0).mean())
        if ALONG_COLUMN in scored:
            row["pilot influence"] = float(part[ALONG_COLUMN].mean())
            row["worst tenth along the pilot"] = share_of(lowest[ALONG_COLUMN], part)
            row["best tenth along the pilot"] = share_of(highest[ALONG_COLUMN], part)
        if "pilot_change" in scored:
            row["pilot change"] = float(part["pilot_change"].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def find_tenth(scored: pd.DataFrame, name: str, highest: bool) -> set[str]:
    """Ids of the tenth of the pairs, at least one, with the lowest or the highest values of a column."""
    ordered = scored.sort_values([name, "id"], ascending=[not highest, True])["id"]
    return set(ordered.head(max(1, round(TENTH * len(scored)))))


def share_of(ids: set[str], part: pd.DataFrame) -> float:
    """The share of some ids that a part of the pairs has."""
    return float(part["id"].isin(ids).sum() / len(ids))


def _make_notes(
    scored: pd.DataFrame,
    null: pd.DataFrame | None,
    config: InfluenceConfig,
    facts: Mapping[str, Any],
    units: NDArray[np.int64],
) -> list[str]:
    """What must be known to read the numbers."""
    through = "through the preconditioner of AdamW" if config.optimizer == "adamw" else "of plain gradient descent"
    said = [
        f"Influences and joint rates are changes per unit of the learning rate of one step {through}, to first order, "
        f"over the parameters '{facts['parameters']}' and the loss {config.loss}; how far ahead they see is in "
        f"docs/influence.md"
    ]
    if "target" in facts:
        target = facts["target"]
        said.append(f"The target is {_describe_target(config, target)}, {target['mean']:.4g} nats before training")
    if ALONG_COLUMN in scored:
        points = 1 + sum(name.startswith(POINT) for name in facts["directions"])
        said.append(
            f"{ALONG_COLUMN} is the influence averaged over the {points} points of the pilot before its steps, with "
            f"the preconditioner of the start; 'target' among the directions is the target's mean in nats at each"
        )
    if "influence" in scored and null is not None and set(null["kind"]) == {"random direction"}:
        said.append("No targets were permuted: its rows have no responses that differ")
    if len(np.unique(units)) < FEW:
        said.append(f"There are fewer than {FEW} pairs or groups of pairs: intervals rest on Student's t")
    return said


def _describe_target(config: InfluenceConfig, target: Mapping[str, Any]) -> str:
    what = {
        "chosen": "ln p of the chosen responses",
        "margin": "ln p(chosen) - ln p(rejected)",
        "response": "ln p of the responses",
        "refusal": f"ln p that the answer begins with {config.refusal_text!r}",
    }[config.quantity]
    rows: Sequence[Any] = (f"{target['rows']:,}", f"{target['of']:,}")
    return f"the mean of {what} over {rows[0]} rows (of {rows[1]} in the file)"
