"""What a run of ``probing score`` says on a page."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from probing.report.checks import judge_rows
from probing.report.figures import Figure
from probing.report.pair_titles import SCORED, TITLES, has_one_token, mask_one_token
from probing.report.parts import RunData, RunReport, Section
from probing.report.plots import draw_scores
from probing.report.pulls import list_pulling_tokens
from probing.report.regimes import count_regimes, describe_loss, draw_regimes, measure_sft_weights, tell_sft_weights
from probing.report.sections.pairs import SCORES, TOKENS, JoinedPairs
from probing.report.tables import quantiles

QUESTION = "Which pairs will hurt?"


def describe_score(run: RunData, thresholds: Mapping[str, float | None], pairs: JoinedPairs) -> RunReport:
    """Distributions of the scores, with the suggested filter, and what they can and cannot tell."""
    frame = run.files[SCORES]
    short = has_one_token(frame)
    ranked = mask_one_token(frame)
    known = [name for name in SCORED if name in frame and np.isfinite(ranked[name]).any()]
    name = f"score-{run.anchor}"
    loss = describe_loss(run.record["config"])
    units = None if run.units is None else np.asarray(run.units)[(frame["status"] == "ok").to_numpy()]
    shares, weights = count_regimes(frame, units), measure_sft_weights(frame)
    tables = {"Quantiles of the scores": quantiles(ranked, known)} if known else {}
    tables |= {"Regimes, with 95 % intervals": shares} if len(shares) else {}
    tables |= {"Least weight of an SFT term": weights} if len(weights) else {}
    if TOKENS in run.files:
        tables["Tokens that pull most, summed over the dataset"] = list_pulling_tokens(run.files[TOKENS])
    section = Section(
        name=name,
        question=QUESTION,
        run=run.label,
        says=_say(run, frame, int(short.sum())),
        figures=[*draw_regimes(shares, loss), *_draw(run, ranked, known, pairs)],
        tables=tables,
        rows=pairs.table.name,
    )
    return RunReport([section], judge_rows(run, name, thresholds))


def _draw(run: RunData, ranked: pd.DataFrame, known: Sequence[str], pairs: JoinedPairs) -> list[Figure]:
    """A distribution of every score, with the rows behind its bars."""
    figures = draw_scores(ranked, {name: TITLES[name] for name in known}, run.marks)
    for figure, name in zip(figures, known, strict=True):
        figure["rows"] = {"table": pairs.table.name, "column": pairs.names[run.label, name]}
    return figures


def _say(run: RunData, frame: pd.DataFrame, short: int) -> list[str]:
    loss = describe_loss(run.record["config"])
    said = [
        "A score is computed from the untrained model alone and is a proxy: it orders the pairs of one dataset for one "
        "model, and its values cannot be compared between models or datasets.",
    ]
    if "ches_normalized" in frame:
        said.append(
            "ches_normalized is high where both responses look alike to the model; training on such pairs tends to "
            "take probability from the chosen response. When many pairs are trained on together, no score of a single "
            "pair says much about its own change: compare two models (probing displacement) to see what happened."
        )
    for column, (value, label) in run.marks.items():
        above = int((frame[column] > value).sum())
        said.append(
            f"The line in the distribution of {column} is where {label} cuts: {above:,} pairs lie above {value:.4g}."
        )
    for name in ("displacement_rate", "displacement_rate_exact"):
        known = frame[name].dropna() if name in frame else pd.Series(dtype=float)
        if len(known):
            said.append(
                f"{name} is below 0 in {int((known < 0).sum()):,} of {len(known):,} pairs: a small step on such a pair "
                f"alone{f' ({loss})' if loss else ''} lowers ln p(chosen)."
            )
    said += tell_sft_weights(frame, loss)
    if TOKENS in run.files:
        said.append(
            "A token of a rejected response with a pull above 0 is one whose lowering lowers ln p(chosen), in the form "
            "of displacement_rate. Open a pair to see which of its tokens pull."
        )
    if short:
        said.append(
            f"{short:,} pairs have responses of one token each, for which CHES is 0 by definition; they are left out "
            f"of its distribution."
        )
    return said
