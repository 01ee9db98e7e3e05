"""Tables and notes of a run of cluster indices."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.report.tables import counts
from probing.runs.clusters.parts import LEARNED, SPACES
from probing.runs.clusters.results import OF_ONE_PAIR, Judged
from probing.runs.clusters.rows import CATEGORY, CONTROL, HELD_OUT, WITHOUT, Material
from probing.runs.common.norms import name_extremes, tabulate_extremes
from probing.runs.common.results import ALL, CHOSEN
from probing.runs.common.tables import (
    BY_PLACE,
    SIGNIFICANT,
    note_few_draws,
    note_floor,
    pick_row,
    pick_rows,
    show_ends,
    show_p,
    smallest_p,
    table_by_place,
)

SILHOUETTE, AQI = "silhouette", "aqi_size_free"
"""The two metrics that can be compared between models and numbers of rows."""
WELCH = "welch"
"""The statistic that tells whether centres lie apart, whatever the spread of each cluster."""
OTHERS = ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni", "aqi", "aqi_size_free")


def make_tables(material: Material, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    several = len(material.names) > 1
    tables = {"Rows by status": counts(facts["rows_by_status"], "status", "rows")}
    if "control" in facts:
        tables["Rows of the control by status"] = counts(facts["control"]["rows_by_status"], "status", "rows")
    over = f"95 % bootstrap intervals over {facts['groups']} groups of rows"
    if material.rows.folds is not None:
        tables[f"Held out, means over {material.config.folds} folds ({over})"] = _compare_held_out(
            material, judged, several
        )
    tables[f"{BY_PLACE}, all rows ({over})"] = _describe_places(material, judged)
    if len(material.rows.views) > 1:
        tables["Sets of rows, at each model's best place"] = _compare_views(material, judged)
    if several:
        tables[f"Differences of corrected values, from {material.names[0]}, all rows, by place"] = _compare_models(
            material, judged
        )
        tables[f"Drift, from {material.names[0]}, by place"] = _describe_drift(judged.drift)
    tables |= tabulate_extremes(judged.extremes.to_dict("records"))
    tables["Notes"] = pd.DataFrame({"note": notes(material, judged)})
    return tables


def _describe_silhouette(results: pd.DataFrame, draws: int, p: str = "p_labels") -> dict[str, Any]:
    """The silhouette with its interval, of nearly the value itself, and its p-value; from the rows of one place."""
    row = pick_row(results, metric=SILHOUETTE)
    return {SILHOUETTE: row["value"], f"{SILHOUETTE} 95 %": _show_ends(row), f"{SILHOUETTE} p": show_p(row[p], draws)}


def _describe_aqi(results: pd.DataFrame, draws: int) -> dict[str, Any]:
    """The AQI with its corrected value, the interval of that one, and p of the centres; from the rows of one place."""
    row = pick_row(results, metric=AQI)
    corrected = {"corrected": row["corrected"], "corrected 95 %": _show_ends(row)}
    centres = pick_row(results, metric=WELCH)["p_labels"]
    return {AQI: row["value"], **corrected, "centres p": show_p(centres, draws)}


def _show_ends(row: "pd.Series[Any]", prefix: str = "") -> str:
    return show_ends(row, prefix, digits=".4g")


def _compare_held_out(material: Material, judged: Judged, several: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    draws = material.config.permutations
    for model in judged.best:
        for space in SPACES:
            own = pick_rows(judged.results, model=model, set=HELD_OUT, place=space)
            if not len(own):
                continue
            row: dict[str, Any] = {"model": model, "layers": space}
            row |= {**_describe_silhouette(own, draws), **_describe_aqi(own, draws)}
            if several:
                change = pick_row(own, metric=AQI)
                row |= {"minus the first": change["minus_first_corrected"]}
                row["minus the first 95 %"] = _show_ends(change, "minus_first_")
            rows.append(row)
    return pd.DataFrame(rows)


def _describe_places(material: Material, judged: Judged) -> pd.DataFrame:
    everything, draws = pick_rows(judged.results, set=ALL), material.config.permutations
    tables = []
    for model, places in zip(material.names, material.places, strict=True):
        results = pick_rows(everything, model=model)
        times, weights = judged.chosen.get(model, {}), judged.layer_weights.get(model)

        def describe(place: str, results: pd.DataFrame = results, times: Any = times, weights: Any = weights) -> Any:
            own = pick_rows(results, place=place)
            row = _describe_silhouette(own, draws, "p_labels_corrected")
            row[f"{SILHOUETTE} p over places"] = row.pop(f"{SILHOUETTE} p")
            row["centres p over places"] = show_p(pick_row(own, metric=WELCH)["p_labels_corrected"], draws)
            row["permuted labels"] = show_ends(pick_row(own, metric=SILHOUETTE), "labels_")
            row |= {metric: float(pick_row(own, metric=metric)["value"]) for metric in OTHERS}
            return row if weights is None else row | {"chosen": times.get(place, 0), "weight": weights[place]}

        known = [place for place in places if (results["place"] == place).any()]
        table = table_by_place(known, describe)
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _compare_views(material: Material, judged: Judged) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    draws = material.config.permutations
    for model, place in judged.best.items():
        here = pick_rows(judged.results, model=model, place=place)
        for view in material.rows.views:
            own = pick_rows(here, set=view.kind, category=view.name)
            if not len(own) or view.kind == WITHOUT:
                continue
            row: dict[str, Any] = {"model": model, "place": place, "rows of": f"{view.kind} {view.name}".strip()}
            row |= {"rows": len(view.index), **_describe_silhouette(own, draws), **_describe_aqi(own, draws)}
            without = pick_rows(here, set=WITHOUT, category=view.name, metric=SILHOUETTE)
            if view.kind == CATEGORY and len(without):
                row |= {"silhouette without it": without["value"].iloc[0]}
                row["without it 95 %"] = _show_ends(without.iloc[0])
            rows.append(row)
    return pd.DataFrame(rows)


def _compare_models(material: Material, judged: Judged) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    everything = pick_rows(judged.results, set=ALL)
    for model in material.names[1:]:
        own = pick_rows(everything, model=model)
        for place in dict.fromkeys(own["place"]):
            row: dict[str, Any] = {"model": model, "place": place}
            for metric in (SILHOUETTE, AQI):
                change = pick_row(own, place=place, metric=metric)
                row |= {metric: change["minus_first_corrected"], f"{metric} 95 %": _show_ends(change, "minus_first_")}
            rows.append(row)
    return pd.DataFrame(rows).dropna(subset=[SILHOUETTE])


def _describe_drift(drift: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (model, place), own in drift.groupby(["model", "place"], sort=False):
        row: dict[str, Any] = {"model": model, "place": place}
        for measure in ("shift_relative", "cka", "cka_debiased"):
            row[measure] = float(pick_row(own, measure=measure, subset=ALL)["value"])
        angles = pick_rows(own, measure="angle")["value"]
        row |= {"largest angle": angles.max(), "mean angle": angles.mean()}
        for conflict in pick_rows(own, measure="geometry_conflict").to_dict("records"):
            row[f"conflict, {conflict['name']}"] = conflict["value"]
        rows.append(row)
    return pd.DataFrame(rows)


def notes(material: Material, judged: Judged) -> list[str]:
    """Notes that a reader has to know before believing a number."""
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
    if len(clusters) > 2:
        said.append(
            f"{', '.join(OF_ONE_PAIR)} have no interval here: they are of one pair of clusters, and with more than two "
            f"clusters no interval was found that holds."
        )
    said.append(
        "centres p is of the distances of centroids, each pair's divided by what chance gives with their sizes and "
        "spreads (welch in the files). The silhouette and the other indices also see a difference of spread."
    )
    said += _note_extremes(judged)
    said.append(
        "A bootstrap replicate leaves points out and adds none, so that dunn can only rise in it: its interval is the "
        "range of the replicates, and no confidence interval."
    )
    if material.rows.folds is None:
        said.append(f"No layer was chosen on held-out rows: {material.rows.why_no_folds}.")
    permutations = material.config.permutations
    said += note_few_draws(permutations=permutations) or note_floor(permutations=permutations)
    enough = max(smallest_p(permutations), SIGNIFICANT)
    said += [_note_significance(judged, model, enough) for model in material.names]
    said += _note_weights(judged)
    said += _note_subsets(judged)
    for name, reason in material.rows.skipped.items():
        said.append(f"Left out, {name}: {reason}.")
    for model, places in judged.skipped.items():
        if places:
            said.append(f"{model}: left out, since the states of each label's rows are the same: {', '.join(places)}.")
    return said + _note_incomparable(material, judged)


def _note_incomparable(material: Material, judged: Judged) -> list[str]:
    """Notes on what could not be compared between models, or held out."""
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
        held = pick_rows(judged.results, model=model, set=HELD_OUT)
        missing = [space for space in SPACES if not (held["place"] == space).any()]
        if material.rows.folds is not None and missing:
            said.append(f"{model}: not held out, since a fold alone has no spread there: {', '.join(missing)}.")
    return said


def _note_significance(judged: Judged, model: str, enough: float) -> str:
    place = judged.best[model]
    own = pick_rows(judged.results, model=model, set=ALL, place=place)
    held = pick_rows(judged.results, model=model, set=HELD_OUT, place=CHOSEN)
    rows = held if len(held) else own
    where = "at the place chosen inside each fold" if len(held) else f"at {place}"
    whole, centres = pick_row(rows, metric=SILHOUETTE), pick_row(rows, metric=WELCH)["p_labels"]
    found = f"silhouette {whole['value']:.3f}, p {whole['p_labels']:.3f}; centres p {centres:.3f}"
    said = f"{model}: {_give_verdict(whole['p_labels'] <= enough, centres <= enough)} {where} ({found})"
    if centres > enough:
        return f"{said}."
    said += "; that they do says nothing of the reason, which may be topic or style"
    # The interval is wide near 0, where an index cannot fall below: it is no test of whether centres lie apart.
    if pick_row(rows, metric="calinski_harabasz")["low"] <= 0:
        said += ". How far cannot be said with so few rows: the interval of the corrected distance reaches 0"
    return f"{said}."


def _give_verdict(apart: bool, centres: bool) -> str:
    """The verdict from the silhouette, which sees places and spreads, and from the centres alone."""
    if apart and centres:
        return "the labels lie further apart than permuted ones"
    if centres:
        return (
            "the centres of the labels lie further apart than those of permuted labels, though their rows overlap so "
            "much that the silhouette does not show it,"
        )
    if apart:
        return (
            "the silhouette differs from that of permuted labels, but the centres lie no further apart than theirs: "
            "what differs is how far the rows of a label spread,"
        )
    return "the labels lie no further apart than permuted ones"


def _note_extremes(judged: Judged) -> list[str]:
    """Note the rows whose norm is hundreds of times that of the others."""
    said = []
    for row in judged.extremes.to_dict("records"):
        one = row["rows"] == 1
        said.append(
            f"{row['model']}, {row['place']}: {name_extremes(row, 'row')}, and {'decides' if one else 'decide'} every "
            f"index: the silhouette is {row['silhouette']:.3f} with {'it' if one else 'them'} and "
            f"{row['silhouette without']:.3f} without."
        )
    return said


def _note_weights(judged: Judged) -> list[str]:
    """Note whether learned weights of layers are worth having."""
    said = []
    for model in judged.layer_weights:
        learned, chosen = (
            pick_rows(judged.results, model=model, set=HELD_OUT, place=space, metric=AQI) for space in (LEARNED, CHOSEN)
        )
        if len(learned) and len(chosen) and learned["value"].iloc[0] <= chosen["value"].iloc[0]:
            said.append(
                f"{model}: learned weights of layers part the held-out rows no better than one layer chosen inside the "
                f"folds (aqi_size_free {learned['value'].iloc[0]:.3f}, {chosen['value'].iloc[0]:.3f})."
            )
    return said


def _note_subsets(judged: Judged) -> list[str]:
    """Note how the distance of labels changes when a category is left out, or topics are matched."""
    said = []
    for model, place in judged.best.items():
        own = pick_rows(judged.results, model=model, place=place, metric=SILHOUETTE)
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
