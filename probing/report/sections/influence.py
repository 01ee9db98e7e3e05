"""What a run of ``probing influence`` says on a page."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from probing.report.checks import judge_rows
from probing.report.figures import Figure
from probing.report.influence_plots import DRAWN, draw_influences
from probing.report.influence_tables import DROP_TITLE, SPREAD_TITLE, drop_worst, list_spread, measure_spread
from probing.report.parts import RunData, RunReport, Section
from probing.report.sections.pairs import INFLUENCES, JoinedPairs
from probing.report.sections.shared import read_option, say_estimate, say_percent
from probing.report.tables import quantiles
from probing.shown import count_of
from probing.statistics.bootstrap import bootstrap_mean, estimate_share

NULL = "null.parquet"
QUESTION = "Which pairs hurt when all are trained on?"


def describe_influence(run: RunData, thresholds: Mapping[str, float | None], pairs: JoinedPairs) -> RunReport:
    """Distributions of influences and of joint rates, with the rows behind their bars."""
    frame, name = run.files[INFLUENCES], f"influence-{run.anchor}"
    good = (frame["status"] == "ok").to_numpy()
    scored = frame[good].reset_index(drop=True)
    known = [column for column in DRAWN if column in scored and scored[column].notna().any()]
    units = None if run.units is None else np.asarray(run.units)[good]
    section = Section(
        name=name,
        question=QUESTION,
        run=run.label,
        says=_say(run, scored, units) if known else ["No pair has a number: see the statuses of the rows."],
        figures=_draw(run, scored, known, pairs),
        tables=_list_tables(run, scored, known) if known else {},
        rows=pairs.table.name,
    )
    return RunReport([section], judge_rows(run, name, thresholds))


def _list_tables(run: RunData, scored: pd.DataFrame, known: list[str]) -> dict[str, pd.DataFrame]:
    tables = {"Quantiles of influences and rates": quantiles(scored, known)}
    if "influence" in known:
        tables[DROP_TITLE] = drop_worst(scored["influence"])
        null = run.files.get(NULL)
        if null is not None and len(null):
            tables[SPREAD_TITLE] = list_spread(scored, null)
    return tables


def _draw(run: RunData, scored: pd.DataFrame, known: list[str], pairs: JoinedPairs) -> list[Figure]:
    groups = [run.groups.get(identity, "") for identity in scored["id"]] if run.groups else None
    figures = draw_influences(scored, groups) if known else []
    for figure, name in zip(figures, known, strict=True):
        figure["rows"] = {"table": pairs.table.name, "column": pairs.names[run.label, name]}
    return figures


def _say(run: RunData, scored: pd.DataFrame, units: object) -> list[str]:
    through = "AdamW" if read_option(run, "optimizer") == "adamw" else "plain gradient descent"
    said = [
        f"The numbers are changes to first order, per unit of the learning rate of one step of {through}: they order "
        f"the pairs at the start of training, and say less the further it goes.",
    ]
    groups = None if units is None else np.asarray(units)
    if "influence" in scored:
        influence = scored["influence"]
        below = int((influence < 0).sum())
        mean = bootstrap_mean(influence, groups=groups)
        said.append(
            f"A step on a pair alone lowers the target ({_name_target(run)}) for {below:,} of {len(scored):,} pairs; "
            f"the mean influence, which is that of a step on all pairs, is {say_estimate(mean)} nats."
        )
        null = run.files.get(NULL)
        if null is not None and null["influence"].notna().any():
            said.append(_say_null(scored, null))
    if "pilot_influence" in scored:
        below = int((scored["pilot_influence"] < 0).sum())
        said.append(
            f"Averaged over the points of a pilot, whose target and weights change as it trains, a step on the pair "
            f"lowers the target for {below:,} of {len(scored):,} pairs."
        )
    if "joint_rate" in scored:
        share = estimate_share((scored["joint_rate"] < 0).astype(float), groups=groups)
        said.append(
            f"When all pairs are trained on together, ln p(chosen) falls at first in {say_percent(share.value)} of the "
            f"pairs (95 % interval {say_percent(share.low)} to {say_percent(share.high)})."
        )
    return said


def _say_null(scored: pd.DataFrame, null: pd.DataFrame) -> str:
    """How the spread of the influences compares with that along directions of chance."""
    spread = dict(measure_spread(scored, null))
    own = float(spread.pop("target")[0])
    against = [
        f"{float(np.median(draws)):.3g} along {count_of(len(draws), kind.removesuffix('s'))}"
        for kind, draws in spread.items()
    ]
    return (
        f"The root mean square of the influences on a sample is {own:.3g}; in the median it is {' and '.join(against)}."
    )


def _name_target(run: RunData) -> str:
    target = run.record.get("target")
    rows = target.get("rows") if isinstance(target, dict) else None
    quantity = read_option(run, "quantity")
    return f"mean of '{quantity}' over {rows} rows" if rows is not None else f"'{quantity}'"
