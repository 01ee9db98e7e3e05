"""What supervised probes say, in a few tables and notes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.probes.prompts import PROBES
from probing.report.tables import counts
from probing.runs.common.results import CHOSEN
from probing.runs.probe.config import ProbeConfig
from probing.runs.probe.results import BASELINE, SURFACE, Judged

SIGNIFICANT = 0.05


def make_tables(config: ProbeConfig, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    over = f"95 % bootstrap intervals over {facts['groups']} groups of rows"
    tables = {
        "Rows by status": counts(facts["rows_by_status"], "status", "rows"),
        f"AUROC ({over}); held out: at the place chosen inside each fold": _compared(judged),
        "AUROC by place, held out": _by_place(judged, facts["places"]),
    }
    tables["Notes"] = pd.DataFrame({"note": notes(config, judged, facts)})
    return tables


def _auroc(results: pd.DataFrame, **where: str) -> pd.Series:
    rows = results[results["metric"] == "auroc"]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.iloc[0]


def _compared(judged: Judged) -> pd.DataFrame:
    """Held out and fresh, beside the baseline."""
    results, rows = judged.results, []
    sets = [name for name in ("held out", "fresh") if (results["set"] == name).any()]
    for name in sets:
        for probe in (*PROBES, SURFACE):
            place = SURFACE if probe == SURFACE else CHOSEN if name == "held out" else judged.best[probe]
            found = _auroc(results[results["set"] == name], place=place, probe=BASELINE if probe == SURFACE else probe)
            row = {"set": name, "probe": "lengths and punctuation" if probe == SURFACE else probe, "place": place}
            row |= {part: found[part] for part in ("value", "low", "high", "rows")}
            row |= {"p(labels)": found["p_labels"], "above baseline": found.get("above_surface", float("nan"))}
            rows.append(row | {" low": found["above_surface_low"], " high": found["above_surface_high"]})
    return pd.DataFrame(rows).rename(columns={"value": "auroc"})


def _by_place(judged: Judged, places: list[str]) -> pd.DataFrame:
    results = judged.results
    held = results[results["set"] == "held out"]
    fresh = results[results["set"] == "fresh"]
    times = Counter(judged.chosen["logistic"])
    rows = []
    for place in places:
        row: dict[str, Any] = {"place": place}
        for probe in PROBES:
            found = _auroc(held, place=place, probe=probe)
            row[probe] = found["value"]
            if probe == "logistic":
                row |= {"low": found["low"], "high": found["high"], "p corrected": found["p_labels_corrected"]}
                row["permuted labels"] = f"{found['labels_low']:.3f} .. {found['labels_high']:.3f}"
            if len(fresh):
                row[f"{probe} fresh"] = _auroc(fresh, place=place, probe=probe)["value"]
        rows.append(row | {"chosen by logistic": times[place]})
    return pd.DataFrame(rows)


def notes(config: ProbeConfig, judged: Judged, facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing a number."""
    said = [f"A probe says yes to the label '{facts['positive']}' ({facts['rows_positive']} of {facts['rows']} rows)."]
    held = judged.results[judged.results["set"] == "held out"]
    own = _auroc(held, place=CHOSEN, probe="logistic")
    least = 1 / (1 + config.refits)
    if least > SIGNIFICANT:
        said.append(f"With {config.refits} permutations of the labels p is at least {least:.3f}: take more --refits.")
    if own["p_labels"] > max(SIGNIFICANT, least):
        said.append(
            f"The logistic probe does no better than one fitted to permuted labels (AUROC {own['value']:.3f}, p "
            f"{own['p_labels']:.3f})."
        )
    if not own["above_surface_low"] > 0:
        said.append(
            f"It is not clearly above what lengths and punctuation alone give "
            f"({_auroc(held, place=SURFACE, probe=BASELINE)['value']:.3f}): it may have found no more than these."
        )
    fresh = judged.results[judged.results["set"] == "fresh"]
    if not len(fresh):
        said.append(
            "Held-out rows are from the same collection. Whether a probe found more than its habits shows on prompts "
            "that were written independently: --fresh FILE."
        )
        return said
    new = _auroc(fresh, place=judged.best["logistic"], probe="logistic")
    said.append(
        f"On fresh prompts the logistic probe at {judged.best['logistic']} has AUROC {new['value']:.3f} "
        f"({new['low']:.3f} to {new['high']:.3f}), held out {own['value']:.3f}."
    )
    if new["low"] <= 0.5:
        said.append("On fresh prompts it cannot be told from guessing.")
    return said
