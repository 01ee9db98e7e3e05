"""What cluster indices say, in a few tables and notes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.report.tables import counts
from probing.runs.clusters.parts import CHOSEN, HELD_OUT, LEARNED, Material
from probing.runs.clusters.results import SPACES, Judged
from probing.runs.clusters.rows import ALL, CATEGORY, CONTROL, WITHOUT

SIGNIFICANT = 0.05
MAIN = ("silhouette", "aqi_size_free")


def make_tables(material: Material, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    several = len(material.names) > 1
    tables = {"Rows by status": counts(facts["rows_by_status"], "status", "rows")}
    if "control" in facts:
        tables["Rows of the control by status"] = counts(facts["control"]["rows_by_status"], "status", "rows")
    over = f"95 % bootstrap intervals over {facts['groups']} groups of rows"
    if material.rows.folds is not None:
        tables[f"Held out, means over {material.config.folds} folds ({over})"] = _held_out(judged, several)
    tables[f"All rows, by place ({over})"] = _by_place(material, judged)
    if len(material.rows.views) > 1:
        tables["Sets of rows, at each model's best place"] = _by_view(material, judged)
    if several:
        tables[f"Differences of corrected values from {material.names[0]}, all rows, by place"] = _differences(
            material, judged
        )
        tables[f"Drift from {material.names[0]}, by place"] = _drift(judged.drift)
    tables["Notes"] = pd.DataFrame({"note": notes(material, judged)})
    return tables


def _rows(results: pd.DataFrame, **where: str) -> pd.DataFrame:
    kept = results
    for name, value in where.items():
        kept = kept[kept[name] == value]
    return kept


def _told(results: pd.DataFrame, metric: str, p: str) -> dict[str, Any]:
    """A metric with its interval and p-value, from the rows of one place."""
    row = results[results["metric"] == metric].iloc[0]
    if metric == MAIN[0]:  # what its interval is of is nearly the value itself
        return {metric: row["value"], f"{metric} 95 %": _ends(row, ""), f"{metric} p": row[p]}
    told = {metric: row["value"], "corrected": row["corrected"], "corrected 95 %": _ends(row, "")}
    return {**told, f"{metric} p": row[p]}


def _ends(row: "pd.Series[Any]", prefix: str) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if pd.isna(low) else f"{low:.4g} .. {high:.4g}"


def _value(results: pd.DataFrame, metric: str) -> float:
    return float(results[results["metric"] == metric]["value"].iloc[0])


def _held_out(judged: Judged, several: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for model in judged.best:
        for space in SPACES:
            own = _rows(judged.results, model=model, set=HELD_OUT, place=space)
            if not len(own):
                continue
            row: dict[str, Any] = {"model": model, "layers": space}
            row |= _told(own, MAIN[0], "p_labels") | _told(own, MAIN[1], "p_labels")
            if several:
                change = own[own["metric"] == MAIN[1]].iloc[0]
                row |= {"minus the first": change["minus_first_corrected"]}
                row["minus the first 95 %"] = _ends(change, "minus_first_")
            rows.append(row)
    return pd.DataFrame(rows)


def _by_place(material: Material, judged: Judged) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    everything = _rows(judged.results, set=ALL)
    for number, model in enumerate(material.names):
        for place in material.places[number]:
            own = _rows(everything, model=model, place=place)
            if not len(own):
                continue
            main = own[own["metric"] == MAIN[0]].iloc[0]
            row: dict[str, Any] = {"model": model, "place": place} | _told(own, MAIN[0], "p_labels_corrected")
            row[f"{MAIN[0]} p over places"] = row.pop(f"{MAIN[0]} p")
            row["permuted labels"] = f"{main['labels_low']:.3f} .. {main['labels_high']:.3f}"
            for metric in ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni", "aqi", "aqi_size_free"):
                row[metric] = _value(own, metric)
            if model in judged.layer_weights:
                row["chosen"] = judged.chosen[model].get(place, 0)
                row["weight"] = judged.layer_weights[model][place]
            rows.append(row)
    return pd.DataFrame(rows)


def _by_view(material: Material, judged: Judged) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for model, place in judged.best.items():
        for view in material.rows.views:
            own = _rows(judged.results, model=model, set=view.kind, category=view.name, place=place)
            if not len(own) or view.kind == WITHOUT:
                continue
            row: dict[str, Any] = {"model": model, "place": place, "rows of": f"{view.kind} {view.name}".strip()}
            row |= {"rows": len(view.index)} | _told(own, MAIN[0], "p_labels") | _told(own, MAIN[1], "p_labels")
            without = _rows(judged.results, model=model, set=WITHOUT, category=view.name, place=place, metric=MAIN[0])
            if view.kind == CATEGORY and len(without):
                row |= {"silhouette without it": without["value"].iloc[0]}
                row["without it 95 %"] = _ends(without.iloc[0], "")
            rows.append(row)
    return pd.DataFrame(rows)


def _differences(material: Material, judged: Judged) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    everything = _rows(judged.results, set=ALL)
    for model in material.names[1:]:
        own = _rows(everything, model=model)
        for place in dict.fromkeys(own["place"]):
            row: dict[str, Any] = {"model": model, "place": place}
            for metric in MAIN:
                change = _rows(own, place=place, metric=metric).iloc[0]
                row |= {metric: change["minus_first_corrected"], f"{metric} 95 %": _ends(change, "minus_first_")}
            rows.append(row)
    return pd.DataFrame(rows).dropna(subset=[MAIN[0]])


def _drift(drift: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (model, place), own in drift.groupby(["model", "place"], sort=False):
        row: dict[str, Any] = {"model": model, "place": place}
        for measure in ("shift_relative", "cka", "cka_debiased"):
            row[measure] = float(own[(own["measure"] == measure) & (own["subset"] == "all")]["value"].iloc[0])
        angles = own[own["measure"] == "angle"]["value"]
        row |= {"largest angle": angles.max(), "mean angle": angles.mean()}
        for conflict in own[own["measure"] == "geometry_conflict"].to_dict("records"):
            row[f"conflict, {conflict['name']}"] = conflict["value"]
        rows.append(row)
    return pd.DataFrame(rows)


def notes(material: Material, judged: Judged) -> list[str]:
    """What a reader has to know before believing a number."""
    said = []
    clusters = material.rows.views[0].clusters
    n = Counter(material.rows.labels[: material.rows.of_data].tolist())
    said.append(f"Compared are {', '.join(f'{name} ({n[name]} rows)' for name in clusters)}.")
    if len(clusters) == 2:
        said.append(
            "Of two clusters Calinski-Harabasz and Xie-Beni are one number: CH = (n - 2) n1 n2 / (n^2 XB). So aqi, the "
            "paper's form, has one degree of freedom."
        )
    said.append(
        "aqi and calinski_harabasz grow with the number of rows, dunn falls: compare them only between equal rows. "
        "Compare models by aqi_size_free or silhouette."
    )
    said.append(
        "Few rows push centroids apart by chance, the more so in many dimensions. The value has that in it, "
        "'corrected' does not, and intervals are for the value that many rows would have."
    )
    said.append(
        "A resample leaves points out and adds none, so that dunn can only rise in it: its interval is the range of "
        "resamples, none of confidence."
    )
    if material.rows.folds is None:
        said.append(f"No layer was chosen on held-out rows: {material.rows.why_no_folds}.")
    least = 1 / (1 + material.config.permutations)
    if least > SIGNIFICANT:
        said.append(f"With {material.config.permutations} permutations p is at least {least:.3f}: take more.")
    said += [_significance(judged, model, max(least, SIGNIFICANT)) for model in material.names]
    said += _weights(material, judged)
    said += _subsets(material, judged)
    for name, reason in material.rows.skipped.items():
        said.append(f"Left out, {name}: {reason}.")
    for model, places in judged.skipped.items():
        if places:
            said.append(f"{model}: left out, since the states of each label's rows are the same: {', '.join(places)}.")
    return said + _compared(material, judged)


def _compared(material: Material, judged: Judged) -> list[str]:
    """What could not be compared between models, or held out."""
    said = []
    for number, model in enumerate(material.names):
        common = [place for place in material.places[number] if place in material.places[0]]
        widths = {int(material.seen[at].store.facts["width"]) for at in (0, number)}
        if not common:
            said.append(f"{model}: has no place of the same name as {material.names[0]}, so nothing is compared.")
        elif len(widths) > 1:
            said.append(
                f"{model}: its states have another width than {material.names[0]}'s; of drift there is only cka."
            )
        held = _rows(judged.results, model=model, set=HELD_OUT)
        missing = [space for space in SPACES if not (held["place"] == space).any()]
        if material.rows.folds is not None and missing:
            said.append(f"{model}: not held out, since a fold alone has no spread there: {', '.join(missing)}.")
    return said


def _significance(judged: Judged, model: str, enough: float) -> str:
    place = judged.best[model]
    own = _rows(judged.results, model=model, set=ALL, place=place, metric=MAIN[0]).iloc[0]
    held = _rows(judged.results, model=model, set=HELD_OUT, place=CHOSEN, metric=MAIN[0])
    row = held.iloc[0] if len(held) else own
    where = "at the place chosen inside each fold" if len(held) else f"at {place}"
    if row["p_labels"] > enough:
        return (
            f"{model}: the labels lie no further apart than permuted ones {where} (silhouette {row['value']:.3f}, p "
            f"{row['p_labels']:.3f})."
        )
    return (
        f"{model}: the labels lie further apart than permuted ones {where} (silhouette {row['value']:.3f}, p "
        f"{row['p_labels']:.3f}); that they do says nothing of the reason, which may be topic or style."
    )


def _weights(material: Material, judged: Judged) -> list[str]:
    """Whether learned weights of layers are worth having."""
    said = []
    for model in judged.layer_weights:
        learned, chosen = (
            _rows(judged.results, model=model, set=HELD_OUT, place=space, metric=MAIN[1]) for space in (LEARNED, CHOSEN)
        )
        if len(learned) and len(chosen) and learned["value"].iloc[0] <= chosen["value"].iloc[0]:
            said.append(
                f"{model}: learned weights of layers part the held-out rows no better than one layer chosen inside the "
                f"folds (aqi_size_free {learned['value'].iloc[0]:.3f}, {chosen['value'].iloc[0]:.3f})."
            )
    return said


def _subsets(material: Material, judged: Judged) -> list[str]:
    """Where the distance of labels goes when a category is left out, or topics are matched."""
    said = []
    for model, place in judged.best.items():
        own = _rows(judged.results, model=model, place=place, metric=MAIN[0])
        whole = own[own["set"] == ALL].iloc[0]
        without = own[own["set"] == WITHOUT]
        if len(without):
            least = without.sort_values("value").iloc[0]
            said.append(
                f"{model}: without '{least['category']}' the silhouette at {place} is {least['value']:.3f} (all rows: "
                f"{whole['value']:.3f}), the least of {len(without)} categories left out."
            )
        control = own[own["set"] == CONTROL]
        if len(control):
            row = control.iloc[0]
            said.append(
                f"{model}: beside the control of matched topics the silhouette at {place} is {row['value']:.3f} "
                f"({row['low']:.3f} to {row['high']:.3f}), beside the data's own rows {whole['value']:.3f}: what the "
                f"control leaves is not topic."
            )
        elif not len(own[own["set"] == CATEGORY]):
            said.append(
                f"{model}: without categories or a control nothing shows whether the labels lie apart by topic alone."
            )
    return said
