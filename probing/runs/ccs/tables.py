"""Tables and notes of a run of contrast-consistent probes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.probes.contrast_readings import PROBES, SUPERVISED
from probing.probes.evaluate import METRICS
from probing.report.tables import counts
from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.results import CONTROL_METRICS, NULL_NAMES, Judged
from probing.runs.common.norms import note_extremes, tabulate_extremes
from probing.runs.common.results import ALL, CHOSEN
from probing.runs.common.tables import (
    BY_PLACE,
    SIGNIFICANT,
    list_places,
    note_few_draws,
    note_few_groups,
    note_floor,
    pick_columns,
    pick_row,
    pick_rows,
    show_ends,
    show_p,
    table_by_place,
)
from probing.shown import count_of
from probing.statistics.intervals import FEW

COLLAPSED = 0.19
LOPSIDED = 0.9
"""Share of pairs with the statement as the true one from which wording and truth cannot be told apart."""
TOO_FEW = f", in fewer than {FEW} groups: too few for an interval, or to say anything."
HEADS = {
    "esa": "accuracy (ESA)",
    "polar_consistency": "polar consistency",
    "median_abs_polar_consistency": "median |polar consistency|",
    "contradiction_index": "contradiction",
}
"""Names of metrics at the head of a column, where these differ from the names in the files."""


def make_tables(config: CCSConfig, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    results, controls = judged.results, judged.controls
    chosen = results[(results["subset"] == ALL) & (results["place"] == CHOSEN)]
    groups = facts["groups"]
    units = "pairs" if groups == facts["pairs"] else "groups of pairs"
    over = f"95 % bootstrap intervals over {groups} {units}, of these trained probes: another start is not in them"
    tables = {
        "Pairs by status": counts(facts["rows_by_status"], "status"),
        f"Probes, held out, at the place chosen inside each fold ({over})": _compare_probes(config, chosen),
        "CCS there, beside what it must beat (middle 95 % of each null distribution)": _compare_with_nulls(
            config, chosen
        ),
        BY_PLACE: _describe_places(judged, facts["places"], config.permutations),
    }
    if (results["subset"] != ALL).any():
        tables[f"By formulation, at {judged.best['ccs']}"] = _compare_formulations(results, judged)
        tables["Mean over places of the absolute difference between formulations"] = _list_differences(controls)
    if (controls["control"] == "marker:change").any():
        title = (
            f"Marker control ({config.replace_word}), at {judged.best['ccs']}: the same probes with the word replaced"
        )
        tables[title] = _compare_marked(controls, judged)
    if (controls["control"] == "distractor").any():
        tables[f"Distractor test ('{config.distractor}' appended to half of the pairs): what CCS follows"] = (
            _compare_distracted(controls, facts["places"])
        )
    tables["Restarts of CCS, trained on every pair"] = _compare_restarts(controls, facts["places"])
    tables["Cosine of the CCS direction with others"] = _list_cosines(controls, facts["places"])
    tables |= tabulate_extremes(facts.get("extreme_norms", []))
    tables["Notes"] = pd.DataFrame({"note": notes(config, judged, facts)})
    return tables


def _compare_probes(config: CCSConfig, chosen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    others = [metric for metric in METRICS if metric != "esa"]
    for probe in PROBES:
        esa = pick_row(chosen, probe=probe, metric="esa")
        row: dict[str, Any] = {"probe": probe, "esa": esa["value"], **pick_columns(esa, "low", "high")}
        draws = config.refits if probe in SUPERVISED else config.permutations
        row |= {"p(labels)": show_p(esa["p_labels"], draws), "p(random)": show_p(esa["p_random"], config.random)}
        rows.append(row | {metric: pick_row(chosen, probe=probe, metric=metric)["value"] for metric in others})
    ccs = {metric: pick_row(chosen, probe="ccs", metric=metric) for metric in METRICS}
    random = {"probe": "random", "esa": ccs["esa"]["random_median"]}
    random |= {"low": ccs["esa"]["random_low"], "high": ccs["esa"]["random_high"]}
    rows.append(random | {metric: ccs[metric]["random_median"] for metric in others})
    return pd.DataFrame(rows).rename(columns=HEADS)


def _compare_with_nulls(config: CCSConfig, chosen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for metric in METRICS:
        result = pick_row(chosen, probe="ccs", metric=metric)
        row = {"metric": metric, **pick_columns(result, "value", "low", "high")}
        row |= {null: show_ends(result, f"{null}_") for null in NULL_NAMES}
        row["p(random)"] = show_p(result["p_random"], config.random)
        rows.append(row | {"p(labels)": show_p(result["p_labels"], config.permutations)})
    return pd.DataFrame(rows)


def _describe_places(judged: Judged, places: list[str], draws: int) -> pd.DataFrame:
    everything = pick_rows(judged.results, subset=ALL)
    times = Counter(judged.chosen["ccs"])

    def describe(place: str) -> dict[str, Any]:
        here = pick_rows(everything, place=place)
        esa, index = (pick_row(here, probe="ccs", metric=metric) for metric in ("esa", "contradiction_index"))
        row: dict[str, Any] = {"ccs accuracy": esa["value"], **pick_columns(esa, "low", "high")}
        row |= {"random": show_ends(esa, "random_"), "p corrected": show_p(esa["p_labels_corrected"], draws)}
        row |= {"ccs contradiction": index["value"], "random contradiction": show_ends(index, "random_")}
        row |= {f"{probe} accuracy": pick_row(here, probe=probe, metric="esa")["value"] for probe in PROBES[1:]}
        return row | {"chosen by ccs": times[place]}

    return table_by_place(places, describe)


def _compare_formulations(results: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    rows = []
    for probe in ("ccs", "logistic"):
        here = pick_rows(results, place=judged.best["ccs"], probe=probe)
        for subset in [name for name in dict.fromkeys(results["subset"]) if name != ALL]:
            for metric in CONTROL_METRICS:
                result = pick_row(here, subset=subset, metric=metric)
                row = {"probe": probe, "formulation": subset.partition("=")[2] or "(none)", "metric": metric}
                row |= pick_columns(result, "value", "low", "high", "pairs")
                rows.append(row | {"random": show_ends(result, "random_")})
    return pd.DataFrame(rows)


def _list_differences(controls: pd.DataFrame) -> pd.DataFrame:
    differences = controls[controls["control"].str.startswith("formulations: ")]
    differences = differences[differences["probe"].isin(["ccs", "logistic", "random"])]
    return pd.DataFrame(
        {
            "formulations": differences["control"].str.removeprefix("formulations: "),
            "metric": differences["metric"],
            "probe": differences["probe"],
            "difference": differences["value"],
            "low": differences["low"],
            "high": differences["high"],
        }
    )


def _compare_marked(controls: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    here = pick_rows(controls, place=judged.best["ccs"])
    rows = []
    for probe in ("ccs", "logistic"):
        for metric in CONTROL_METRICS:
            before, after, change = (
                pick_row(here, control=f"marker:{name}", probe=probe, metric=metric)
                for name in ("before", "after", "change")
            )
            row = {"probe": probe, "metric": metric, "before": before["value"], "after": after["value"]}
            rows.append(row | {"change": change["value"], **pick_columns(change, "low", "high", "pairs")})
    return pd.DataFrame(rows)


def _compare_distracted(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    def describe(place: str) -> dict[str, Any]:
        here = pick_rows(controls, control="distractor", place=place)
        truth, word = (pick_row(here, metric=metric) for metric in ("truth", "distractor"))
        row: dict[str, Any] = {"right about truth": truth["value"], **pick_columns(truth, "low", "high")}
        row |= {"right about the word": word["value"], "word low": word["low"], "word high": word["high"]}
        row |= {"cosine with the word": pick_row(here, metric="cosine_distractor")["value"]}
        return row | {"follows": name_followed(truth, word)}

    return table_by_place(places, describe)


def name_followed(truth: pd.Series, word: pd.Series) -> str:
    """The one of truth and word that a probe answers better, if that is better than guessing."""
    better, name = (word, "the word") if word["value"] > truth["value"] else (truth, "truth")
    return name if better["low"] > 0.5 else "neither"


def _compare_restarts(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    def describe(place: str) -> dict[str, Any]:
        here = pick_rows(controls, control="restarts", place=place).set_index("metric")["value"]
        row = {"least loss": here["least_loss"], "largest loss": here["largest_loss"]}
        row |= {"agreement": here.get("agreement", float("nan"))}
        return row | {"distinct optima": int(here["distinct_optima"])}

    return table_by_place(places, describe)


def _list_cosines(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    cosines = pick_rows(controls, control="cosine")
    table = cosines.pivot(index="place", columns="metric", values="value").loc[places]
    return table[[probe for probe in PROBES if probe in table.columns]].rename_axis(columns=None).reset_index()


def notes(config: CCSConfig, judged: Judged, facts: Mapping[str, Any]) -> list[str]:
    """Notes that a reader has to know before believing a number."""
    said = [f"What is read is {facts['token']}."]
    share = facts["statements_true"] / facts["pairs"]
    if not 1 - LOPSIDED <= share <= LOPSIDED:
        said.append(
            f"In {share:.0%} of the pairs the statement is the true one: truth and wording cannot be told apart here, "
            f"and a probe of the wording alone (of 'not', say) looks like one of truth."
        )
    chosen = pick_rows(judged.results, subset=ALL, place=CHOSEN)
    esa, index = (pick_row(chosen, probe="ccs", metric=metric) for metric in ("esa", "contradiction_index"))
    said.append(_give_verdict(esa, config))
    if not index["p_random"] <= SIGNIFICANT:
        said.append(
            f"The contradiction index of CCS ({index['value']:.3f}) is not below that of random probes (p "
            f"{index['p_random']:.3f}; their middle 95 % is {show_ends(index, 'random_')}): it says nothing of the "
            f"model."
        )
    draws = {"random": config.random, "permutations": config.permutations}
    said += note_few_draws(**draws) or note_floor(**draws, refits=config.refits)
    said += note_few_groups(facts["groups"])
    said += _note_small_sets(judged)
    divided = ", which --normalization l2 divides out"
    decides = ", and can decide where a probe lies; --normalization l2 divides it out"
    said += note_extremes(facts.get("extreme_norms", []), "pair", divided if config.normalization == "l2" else decides)
    said.append(
        "The accuracy (esa in the files) is the share of statements whose score is on the right side of .5. The "
        "contradiction index, the mean of both orientations of a probe, is high where a statement and its opposite are "
        "both affirmed or both denied, and the "
        "polar consistency is away from 0 where the two forms do not tell them apart alike. A probe that says .5 of "
        "everything has a polar consistency of 0 as well (and a contradiction index of .5): read it beside the "
        "accuracy and the random probes only."
    )
    said += _note_collapse(judged.controls, facts["places"])
    said += _note_distractor(judged.controls, facts["places"], config)
    said += [f"{place} is left out: {why}." for place, why in facts["skipped_places"].items()]
    controls = set(judged.controls["control"])
    if config.replace_word and "marker:change" not in controls:
        said.append(
            f"No marker control: no statement has the word '{config.replace_word.partition('=')[0]}', or the "
            f"store has no states of it."
        )
    if config.distractor and "distractor" not in controls:
        said.append("No distractor test: the store has no states with the distractor.")
    return said


def _note_small_sets(judged: Judged) -> list[str]:
    """Note where so few pairs have the word of the marker control, or a formulation, that they say nothing."""
    said = []
    marked = pick_rows(judged.controls, control="marker:change", metric="polar_consistency")
    if len(marked) and marked["low"].isna().all():
        said.append(f"The marker control is of {count_of(int(marked['pairs'].iloc[0]), 'pair')}{TOO_FEW}")
    parts = judged.results[judged.results["subset"] != ALL]
    for name, rows in pick_rows(parts, metric="polar_consistency").groupby("subset"):
        if rows["low"].isna().all():
            name = str(name).partition("=")[2] or "(none)"
            said.append(f"The formulation {name} has {count_of(int(rows['pairs'].iloc[0]), 'pair')}{TOO_FEW}")
    return said


def _give_verdict(esa: pd.Series, config: CCSConfig) -> str:
    """The verdict on CCS against its null distributions."""
    value, against = f"accuracy {esa['value']:.3f}", f"random probes {show_ends(esa, 'random_')}"
    if config.supervision:
        return f"CCS was trained with the labels here: its {value} is that of a supervised probe; {against}."
    labels = f"p {esa['p_labels']:.3f} by {config.permutations} permutations of the labels"
    if esa["p_labels"] > SIGNIFICANT:
        return f"CCS does not tell true from false statements better than chance: {value}, {labels}; {against}."
    if esa["p_random"] > SIGNIFICANT:
        return (
            f"CCS tells true from false statements ({value}, {labels}), but {esa['p_random']:.0%} of random directions "
            f"do so as well ({against}): this does not show that its search found anything."
        )
    return (
        f"CCS tells true from false statements better than chance and than random directions: {value}, {labels}; "
        f"{against}."
    )


def _note_collapse(controls: pd.DataFrame, places: list[str]) -> list[str]:
    """Note where CCS found no contrast: .4 for every form has a loss of .2, the least without reading any state."""
    rows = pick_rows(controls, control="restarts", metric="least_loss")
    gave_up = [place for place in places if float(pick_row(rows, place=place)["value"]) > COLLAPSED]
    if not gave_up:
        return []
    return [
        f"At {len(gave_up)} of {len(places)} places ({list_places(gave_up)}) CCS found next to no contrast: its loss "
        f"stays at that of a probe which says .4 of every form (.2), and from that alone come a contradiction index of "
        f".52 and a polar consistency of 0, low as that is."
    ]


def _note_distractor(controls: pd.DataFrame, places: list[str], config: CCSConfig) -> list[str]:
    rows = pick_rows(controls, control="distractor")
    if not len(rows):
        return []
    won = [
        place
        for place in places
        if name_followed(*(pick_row(rows, place=place, metric=metric) for metric in ("truth", "distractor")))
        == "the word"
    ]
    if not won:
        return [f"The distractor '{config.distractor}' did not win at any place."]
    return [
        f"With '{config.distractor}' appended to half of the pairs, CCS found the word and not truth at "
        f"{len(won)} of {len(places)} places ({list_places(won)}): what it finds is whatever contrast is most "
        f"prominent."
    ]
