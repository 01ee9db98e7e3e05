"""Tables and notes of a run of supervised probes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.probes.prompts import PROBES
from probing.report.tables import counts
from probing.runs.common.norms import note_extremes, tabulate_extremes
from probing.runs.common.results import CHOSEN, SURFACE
from probing.runs.common.tables import (
    BY_PLACE,
    SIGNIFICANT,
    note_few_draws,
    note_few_groups,
    note_floor,
    pick_columns,
    pick_row,
    pick_rows,
    show_ends,
    show_p,
    smallest_p,
    table_by_place,
)
from probing.runs.probe.config import ProbeConfig
from probing.runs.probe.results import BASELINE, FRESH, HELD_OUT, Judged


def make_tables(config: ProbeConfig, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    over = f"95 % percentile bootstrap intervals over {facts['groups']} groups of rows"
    return {
        "Rows by status": counts(facts["rows_by_status"], "status", "rows"),
        f"AUROC, positive = {facts['positive']} ({over}); held out: at the place chosen inside each fold": (
            _compare_sets(config, judged)
        ),
        f"{BY_PLACE}: AUROC, held out, positive = {facts['positive']}": _describe_places(
            judged, facts["places"], config.refits
        ),
        **tabulate_extremes(facts.get("extreme_norms", [])),
        "Notes": pd.DataFrame({"note": notes(config, judged, facts)}),
    }


def _pick_sets(judged: Judged) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC of held-out rows, and of fresh ones."""
    auroc = pick_rows(judged.results, metric="auroc")
    return pick_rows(auroc, set=HELD_OUT), pick_rows(auroc, set=FRESH)


def _compare_sets(config: ProbeConfig, judged: Judged) -> pd.DataFrame:
    """Held out and fresh, beside the baseline."""
    rows = []
    for name, results in zip((HELD_OUT, FRESH), _pick_sets(judged), strict=True):
        for probe in (*PROBES, SURFACE) if len(results) else ():
            place = SURFACE if probe == SURFACE else CHOSEN if name == HELD_OUT else judged.best[probe]
            result = pick_row(results, place=place, probe=BASELINE if probe == SURFACE else probe)
            row: dict[str, Any] = {
                "set": name,
                "probe": "lengths and punctuation" if probe == SURFACE else probe,
                "place": place,
            }
            row |= pick_columns(result, "value", "low", "high", "rows")
            row |= {"p(labels)": show_p(result["p_labels"], config.refits), "above baseline": result["above_surface"]}
            ends = {f"its {end}": result[f"above_surface_{end}"] for end in ("low", "high")}
            rows.append(row | ends)
    return pd.DataFrame(rows).rename(columns={"value": "auroc"})


def _describe_places(judged: Judged, places: list[str], draws: int) -> pd.DataFrame:
    held, fresh = _pick_sets(judged)
    times = Counter(judged.chosen["logistic"])

    def describe(place: str) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for probe in PROBES:
            result = pick_row(held, place=place, probe=probe)
            row[probe] = result["value"]
            if probe == "logistic":
                row |= {
                    **pick_columns(result, "low", "high"),
                    "p corrected": show_p(result["p_labels_corrected"], draws),
                }
                row["permuted labels"] = show_ends(result, "labels_")
            if len(fresh):
                row[f"{probe} fresh"] = pick_row(fresh, place=place, probe=probe)["value"]
        return row | {"chosen by logistic": times[place]}

    return table_by_place(places, describe)


def notes(config: ProbeConfig, judged: Judged, facts: Mapping[str, Any]) -> list[str]:
    """Notes that a reader has to know before believing a number."""
    said = [f"A probe says yes to the label '{facts['positive']}' ({facts['rows_positive']} of {facts['rows']} rows)."]
    held, fresh = _pick_sets(judged)
    own = pick_row(held, place=CHOSEN, probe="logistic")
    said += note_few_draws(refits=config.refits) or note_floor(refits=config.refits)
    said += note_few_groups(facts["groups"])
    said += note_few_groups(facts["fresh"]["groups"], "fresh rows") if "fresh" in facts else []
    said += note_extremes(
        facts.get("extreme_norms", []), "row", ", and can decide where a probe lies; leave such rows out to see"
    )
    if own["p_labels"] > max(SIGNIFICANT, smallest_p(config.refits)):
        said.append(
            f"The logistic probe does no better than one fitted to permuted labels (AUROC {own['value']:.3f}, p "
            f"{own['p_labels']:.3f})."
        )
    if not own["above_surface_low"] > 0:
        said.append(
            f"It is not clearly above what lengths and punctuation alone give "
            f"({pick_row(held, place=SURFACE, probe=BASELINE)['value']:.3f}): it may have found no more than these."
        )
    if not len(fresh):
        said.append(
            "Held-out rows are from the same collection. Whether a probe found more than its habits shows on prompts "
            "that were written independently: --fresh FILE."
        )
        return said
    new = pick_row(fresh, place=judged.best["logistic"], probe="logistic")
    said.append(
        f"On fresh prompts the logistic probe at {judged.best['logistic']} has AUROC {new['value']:.3f} "
        f"({new['low']:.3f} to {new['high']:.3f}), held out {own['value']:.3f}."
    )
    if new["low"] <= 0.5:
        said.append("On fresh prompts it cannot be told from guessing.")
    return said
