"""Tables and notes of ``probing refusal evaluate``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probing.directions.judge_text import VERDICTS
from probing.directions.refusal_score import FoundToken
from probing.report.tables import counts
from probing.runs.common.results import ALL
from probing.runs.common.tables import note_few_groups, pick_row, pick_rows, show_ends
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.results import (
    ABOVE_ZERO,
    CROSS_ENTROPY,
    HARMFUL,
    HARMLESS,
    KL_ANSWER,
    KL_FIRST,
    LOG_ODDS,
    REFUSED_SHARE,
)
from probing.runs.refusal.evaluate.rows import AFTER, BEFORE, COVARIANCE, LABELS, RANDOM

KINDS = (HARMFUL, HARMLESS)
NO_ANSWER = ("empty", "degenerate", "unfinished thought")
BROKEN = 0.1
"""Share of answers that are none, after the edit, above which a note says so."""
FEW_DRAWS = 20
BAND_TITLES = {RANDOM: "random directions", COVARIANCE: "random by covariance", LABELS: "permuted labels"}


@dataclass(frozen=True, eq=False)
class Shown:
    """What the tables are made of.

    Attributes:
        config: options of the run.
        results: rows of results.parquet.
        tokens: the refusal tokens.
        names: text of each refusal token, by id.
        facts: facts of the record.
        left_out: one row a category that was left out; None where no extraction is known.
        judges: agreement with the judge; None where there is none.
        matrix: extracted in, evaluated in; None unless thinking is "both".
    """

    config: EvaluateConfig
    results: pd.DataFrame
    tokens: Sequence[FoundToken]
    names: Mapping[int, str]
    facts: Mapping[str, Any]
    left_out: pd.DataFrame | None
    judges: pd.DataFrame | None
    matrix: pd.DataFrame | None


def make_tables(shown: Shown) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    tables = {"Verdict": pd.DataFrame({"verdict": [f"Edited: {shown.facts['edit']}", *tell_verdict(shown)]})}
    for mode in shown.config.modes:
        title = "" if mode == "default" else f", thinking {mode}"
        own = pick_rows(shown.results, thinking=mode)
        tables[f"Refusal in generated answers{title}"] = _list_refused(own)
        tables[f"Answers by what they do (share){title}"] = _list_verdicts(own)
        tables[f"Log-odds of refusal at the first token{title}"] = _list_log_odds(own)
        tables[f"How far harmless answers change (nats a token){title}"] = _list_changes(own)
        if own["category"].nunique() > 1:
            tables[f"By category{title}"] = _list_categories(own)
    text = pick_rows(shown.results, measure=CROSS_ENTROPY)
    if len(text):
        tables["Cross-entropy on the text (nats a token)"] = pd.DataFrame(
            [{"": row["when"], "value": row["value"], "95 % interval": show_ends(row)} for _, row in text.iterrows()]
        )
    for heading, table in (
        ("Each category left out of the extraction", shown.left_out),
        ("Refused, by where the direction was extracted and where it is evaluated", shown.matrix),
        ("Our verdicts and the judge's", shown.judges),
    ):
        if table is not None and len(table):
            tables[heading] = table
    tables["Refusal tokens, with their mean probability as first token before the edit"] = pd.DataFrame(
        [
            {"token": repr(shown.names[each.id]), "id": each.id, "harmful": each.harmful, "harmless": each.harmless}
            for each in shown.tokens
        ]
    )
    tables["Rows by status"] = counts(shown.facts["rows_by_status"], "status", "rows")
    tables["Notes"] = pd.DataFrame({"note": make_notes(shown)})
    return tables


def tell_verdict(shown: Shown) -> list[str]:
    """Refusal of both kinds before and after, in a sentence for each way of thinking."""
    said = []
    for mode in shown.config.modes:
        own = pick_rows(shown.results, thinking=mode, category=ALL)
        refused = {
            (kind, when): pick_row(own, kind=kind, measure=REFUSED_SHARE, when=when)["value"]
            for kind in KINDS
            for when in (BEFORE, AFTER)
        }
        broken = {kind: _share_without_answer(own, kind) for kind in KINDS}
        line = (
            f"Refused harmful prompts: {refused[HARMFUL, BEFORE]:.1%} before, {refused[HARMFUL, AFTER]:.1%} after "
            f"(under-refusal {1 - refused[HARMFUL, BEFORE]:.1%} and {1 - refused[HARMFUL, AFTER]:.1%}). Refused "
            f"harmless prompts (over-refusal): {refused[HARMLESS, BEFORE]:.1%} before, {refused[HARMLESS, AFTER]:.1%} "
            f"after. Empty, degenerate or unfinished answers after: {broken[HARMFUL]:.1%} of harmful, "
            f"{broken[HARMLESS]:.1%} of harmless prompts."
        )
        said.append(line if mode == "default" else f"Thinking {mode}: {line}")
    return said


def _share_without_answer(own: pd.DataFrame, kind: str, when: str = AFTER) -> float:
    return float(sum(pick_row(own, kind=kind, measure=name, when=when)["value"] for name in NO_ANSWER))


def _list_refused(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind in KINDS:
        before, after = (
            pick_row(own, kind=kind, category=ALL, measure=REFUSED_SHARE, when=when) for when in (BEFORE, AFTER)
        )
        row = {"prompts": kind, "count": before["n"], "refused before": before["value"]}
        row |= {"95 % interval before": show_ends(before), "refused after": after["value"]}
        row |= {"95 % interval after": show_ends(after)}
        if after[f"{RANDOM}_n"] > 0:
            row |= {"random directions": show_ends(after, f"{RANDOM}_")}
        rows.append(row)
    return pd.DataFrame(rows)


def _list_verdicts(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for verdict in VERDICTS:
        row: dict[str, Any] = {"the answer is": verdict}
        for kind in KINDS:
            for when in (BEFORE, AFTER):
                found = pick_row(own, kind=kind, category=ALL, measure=verdict, when=when)
                row |= {f"{kind} {when}": found["value"], f"{kind} {when}, 95 %": show_ends(found)}
        rows.append(row)
    return pd.DataFrame(rows)


def _list_log_odds(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind in KINDS:
        for measure, name in ((LOG_ODDS, "mean"), (ABOVE_ZERO, "share above 0")):
            before, after = (
                pick_row(own, kind=kind, category=ALL, measure=measure, when=when) for when in (BEFORE, AFTER)
            )
            row = {"prompts": kind, "": name, "before": before["value"], "95 % before": show_ends(before)}
            row |= {"after": after["value"], "95 % after": show_ends(after)}
            rows.append(row | _show_bands(after))
    return pd.DataFrame(rows)


def _show_bands(row: "pd.Series[Any]") -> dict[str, str]:
    return {title: show_ends(row, f"{band}_", ".4g") for band, title in BAND_TITLES.items() if row[f"{band}_n"] > 0}


def _list_changes(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for measure, name in ((KL_FIRST, "KL at the first token"), (KL_ANSWER, "KL over the model's own answer")):
        found = pick_row(own, kind=HARMLESS, category=ALL, measure=measure)
        row = {"": name, "value": found["value"], "95 % interval": show_ends(found)}
        rows.append(row | (_show_bands(found) if measure == KL_FIRST else {}))
    return pd.DataFrame(rows).fillna("-")


def _list_categories(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    named = own[own["category"] != ALL]
    for (kind, category), _ in named.groupby(["kind", "category"], sort=True):
        row: dict[str, Any] = {"prompts": kind, "category": category}
        for when in (BEFORE, AFTER):
            refused, odds = (
                pick_row(named, kind=str(kind), category=str(category), measure=measure, when=when)
                for measure in (REFUSED_SHARE, LOG_ODDS)
            )
            row |= {"count": refused["n"], f"refused {when}": refused["value"]}
            row |= {f"95 % {when}": show_ends(refused), f"log-odds {when}": odds["value"]}
        rows.append(row)
    return pd.DataFrame(rows)


def make_notes(shown: Shown) -> list[str]:
    """What has to be known to read the tables."""
    config, facts = shown.config, shown.facts
    said = [
        "Verdicts are those of phrases, which is a weak judge: read answers.parquet, where both answers stand side by "
        "side, or give a --judge. A refusal that is not worded as usual counts as compliance."
    ]
    for mode in config.modes:
        own = pick_rows(shown.results, thinking=mode, category=ALL)
        for kind in KINDS:
            share = _share_without_answer(own, kind)
            if share > max(BROKEN, 2 * _share_without_answer(own, kind, BEFORE)):
                said.append(
                    f"{share:.0%} of the answers to {kind} prompts are empty, degenerate or never leave the thought "
                    f"after the edit: the model is damaged, and that it refuses less is no success."
                )
    if facts["answers_cut"]:
        said.append(f"{facts['answers_cut']:.0%} of the answers were cut at {config.new_tokens} tokens (--new-tokens).")
    if facts["prompts_extracted_from"]:
        said.append(
            f"{facts['prompts_extracted_from']} of these prompts are among those that the direction was extracted "
            f"from. Evaluate on others."
        )
    if 0 < config.random_directions < FEW_DRAWS and config.direction is not None:
        said.append(f"The band is of {config.random_directions} random directions, so its ends are rough.")
    if config.direction is not None and not facts["extracted_known"]:
        said.append(
            "There is no control by permuted labels and by categories left out: give the folder of 'probing refusal "
            "extract' as --extracted."
        )
    elif config.direction is not None and shown.left_out is None:
        said.append("The prompts of the extraction have too few categories for any to be left out.")
    if "on" in config.modes:
        said.append(
            "With thinking on, the first token begins the thought, so its log-odds say little of the answer; answers "
            "that are cut within the thought are counted apart."
        )
    return said + note_few_groups(facts["groups"])
