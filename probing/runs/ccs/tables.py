"""What a run of contrast-consistent probes says, in a few tables and notes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from probing.probes.contrast import PROBES
from probing.probes.evaluate import METRICS
from probing.report.tables import counts
from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.results import ALL, CONTROL_METRICS, Judged
from probing.runs.common.results import CHOSEN

SIGNIFICANT = 0.05
COLLAPSED = 0.19
NAMED = 5
"""Places that a note lists."""
LOPSIDED = 0.9
"""Share of pairs with the statement as the true one from which wording and truth cannot be told apart."""


def make_tables(config: CCSConfig, judged: Judged, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    results, controls = judged.results, judged.controls
    chosen = results[(results["subset"] == ALL) & (results["place"] == CHOSEN)]
    groups = facts["groups"]
    over = f"95 % bootstrap intervals over {groups} {'pairs' if groups == facts['pairs'] else 'groups of pairs'}"
    tables = {
        "Pairs by status": counts(facts["rows_by_status"], "status"),
        f"Probes, held out, at the place chosen inside each fold ({over})": _probes(chosen),
        "CCS there, beside what it must beat (95 % bands)": _against_nulls(chosen),
        "By place": _by_place(judged, facts["places"]),
    }
    if (results["subset"] != ALL).any():
        tables[f"By formulation, at {judged.best['ccs']}"] = _by_formulation(results, judged)
        tables["Mean over places of the absolute difference between formulations"] = _differences(controls)
    if (controls["control"] == "marker:change").any():
        title = (
            f"Marker control ({config.replace_word}), at {judged.best['ccs']}: the same probes with the word replaced"
        )
        tables[title] = _marker(controls, judged)
    if (controls["control"] == "distractor").any():
        tables[f"Distractor test ('{config.distractor}' appended to half of the pairs): what CCS follows"] = (
            _distractor(controls, facts["places"])
        )
    tables["Restarts of CCS, trained on every pair"] = _restarts(controls, facts["places"])
    tables["Cosine of the CCS direction with others"] = _cosines(controls, facts["places"])
    tables["Notes"] = pd.DataFrame({"note": notes(config, judged, facts)})
    return tables


def _pick(rows: pd.DataFrame, **where: str) -> pd.Series:
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.iloc[0]


def _probes(chosen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for probe in PROBES:
        esa = _pick(chosen, probe=probe, metric="esa")
        row: dict[str, Any] = {"probe": probe, "esa": esa["value"], "low": esa["low"], "high": esa["high"]}
        row |= {"p(labels)": esa["p_labels"], "p(random)": esa["p_random"]}
        row |= {metric: _pick(chosen, probe=probe, metric=metric)["value"] for metric in METRICS if metric != "esa"}
        rows.append(row)
    band = _pick(chosen, probe="ccs", metric="esa")
    random: dict[str, Any] = {"probe": "random", "esa": band["random_median"]}
    random |= {"low": band["random_low"], "high": band["random_high"]}
    medians = {metric: _pick(chosen, probe="ccs", metric=metric)["random_median"] for metric in METRICS}
    rows.append(random | {metric: value for metric, value in medians.items() if metric != "esa"})
    return _shortened(pd.DataFrame(rows))


def _shortened(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(
        columns={"polar_consistency": "PC", "median_abs_polar_consistency": "|PC|", "contradiction_index": "CI"}
    )


def _against_nulls(chosen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for metric in METRICS:
        found = _pick(chosen, probe="ccs", metric=metric)
        row = {"metric": metric} | {name: found[name] for name in ("value", "low", "high")}
        for band in ("random", "pairings", "labels"):
            row[band] = _band(found, band)
        rows.append(row | {"p(random)": found["p_random"], "p(labels)": found["p_labels"]})
    return pd.DataFrame(rows)


def _band(row: pd.Series, band: str) -> str:
    low, high = row[f"{band}_low"], row[f"{band}_high"]
    return "-" if np.isnan(low) else f"{low:.3f} .. {high:.3f}"


def _by_place(judged: Judged, places: list[str]) -> pd.DataFrame:
    everything = judged.results[judged.results["subset"] == ALL]
    times = {probe: Counter(judged.chosen[probe]) for probe in PROBES}
    rows = []
    for place in places:
        here = everything[everything["place"] == place]
        esa, index = (_pick(here, probe="ccs", metric=metric) for metric in ("esa", "contradiction_index"))
        row: dict[str, Any] = {"place": place, "ccs esa": esa["value"], "low": esa["low"], "high": esa["high"]}
        row |= {"random": _band(esa, "random"), "p corrected": esa["p_labels_corrected"]}
        row |= {"ccs CI": index["value"], "random CI": _band(index, "random")}
        row |= {f"{probe} esa": _pick(here, probe=probe, metric="esa")["value"] for probe in PROBES[1:]}
        rows.append(row | {"chosen by ccs": times["ccs"][place]})
    return pd.DataFrame(rows)


def _by_formulation(results: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    rows = []
    for probe in ("ccs", "logistic"):
        here = results[(results["place"] == judged.best["ccs"]) & (results["probe"] == probe)]
        for subset in [name for name in dict.fromkeys(results["subset"]) if name != ALL]:
            for metric in CONTROL_METRICS:
                found = _pick(here, subset=subset, metric=metric)
                row = {"probe": probe, "formulation": subset.partition("=")[2] or "(none)", "metric": metric}
                row |= {name: found[name] for name in ("value", "low", "high", "pairs")}
                rows.append(row | {"random": _band(found, "random")})
    return pd.DataFrame(rows)


def _differences(controls: pd.DataFrame) -> pd.DataFrame:
    found = controls[controls["control"].str.startswith("formulations: ")]
    found = found[found["probe"].isin(["ccs", "logistic", "random"])]
    return pd.DataFrame(
        {
            "formulations": found["control"].str.removeprefix("formulations: "),
            "metric": found["metric"],
            "probe": found["probe"],
            "difference": found["value"],
            "low": found["low"],
            "high": found["high"],
        }
    )


def _marker(controls: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    here = controls[controls["place"] == judged.best["ccs"]]
    rows = []
    for probe in ("ccs", "logistic"):
        for metric in CONTROL_METRICS:
            parts = {
                name: _pick(here, control=f"marker:{name}", probe=probe, metric=metric)
                for name in ("before", "after", "change")
            }
            row = {"probe": probe, "metric": metric, "before": parts["before"]["value"]}
            row |= {"after": parts["after"]["value"]}
            rows.append(row | {name: parts["change"][part] for name, part in CHANGE.items()})
    return pd.DataFrame(rows)


CHANGE = {"change": "value", "low": "low", "high": "high", "pairs": "pairs"}


def _distractor(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    rows = []
    for place in places:
        here = controls[(controls["control"] == "distractor") & (controls["place"] == place)]
        truth, word = (_pick(here, metric=metric) for metric in ("truth", "distractor"))
        row: dict[str, Any] = {"place": place, "right about truth": truth["value"], "low": truth["low"]}
        row |= {"high": truth["high"], "right about the word": word["value"], " low": word["low"]}
        row |= {" high": word["high"], "cosine with the word": _pick(here, metric="cosine_distractor")["value"]}
        rows.append(row | {"follows": followed(truth, word)})
    return pd.DataFrame(rows)


def followed(truth: pd.Series, word: pd.Series) -> str:
    """What a probe follows: the one of the two it answers better, if that is better than guessing."""
    better, name = (word, "the word") if word["value"] > truth["value"] else (truth, "truth")
    return name if better["low"] > 0.5 else "neither"


def _restarts(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    rows = []
    for place in places:
        here = controls[(controls["control"] == "restarts") & (controls["place"] == place)].set_index("metric")["value"]
        row = {"place": place, "least loss": here["least_loss"], "largest loss": here["largest_loss"]}
        row |= {"agreement": here.get("agreement", float("nan"))}
        rows.append(row | {"distinct optima": int(here["distinct_optima"])})
    return pd.DataFrame(rows)


def _cosines(controls: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    found = controls[controls["control"] == "cosine"]
    table = found.pivot(index="place", columns="metric", values="value").loc[places]
    return table[[probe for probe in PROBES if probe in table.columns]].rename_axis(columns=None).reset_index()


def notes(config: CCSConfig, judged: Judged, facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing a number."""
    said = [f"Read is {facts['token']}."]
    share = facts["statements_true"] / facts["pairs"]
    if not 1 - LOPSIDED <= share <= LOPSIDED:
        said.append(
            f"In {share:.0%} of the pairs the statement is the true one: truth and wording cannot be told apart here, "
            f"and a probe of the wording alone (of 'not', say) looks like one of truth."
        )
    chosen = judged.results[(judged.results["subset"] == ALL) & (judged.results["place"] == CHOSEN)]
    esa, index = (_pick(chosen, probe="ccs", metric=metric) for metric in ("esa", "contradiction_index"))
    said.append(_verdict(esa, config))
    if not index["p_random"] <= SIGNIFICANT:
        said.append(
            f"The contradiction index of CCS ({index['value']:.3f}) is not below that of random probes (p "
            f"{index['p_random']:.3f}; their band is {_band(index, 'random')}): it says nothing of the model."
        )
    least = round(1 / SIGNIFICANT) - 1
    few = [f"{getattr(config, name)} {name}" for name in ("random", "permutations") if getattr(config, name) < least]
    if few:
        said.append(f"With less than {least} draws ({', '.join(few)}) no p-value can reach {SIGNIFICANT}: take more.")
    said.append(
        "PC is zero for a probe that says .5 of everything as well (CI .5): read it beside ESA and the band of random "
        "probes only."
    )
    said += _collapsed_note(judged.controls, facts["places"])
    said += _distractor_note(judged.controls, facts["places"], config)
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


def _verdict(esa: pd.Series, config: CCSConfig) -> str:
    """Where CCS stands against its nulls."""
    value, against = f"{esa['value']:.3f}", f"random probes {_band(esa, 'random')}"
    if config.supervision:
        return f"CCS was trained with the labels here: ESA {value} is that of a supervised probe; {against}."
    labels = f"p {esa['p_labels']:.3f} by {config.permutations} permutations of the labels"
    if esa["p_labels"] > SIGNIFICANT:
        return f"CCS does not tell true from false statements better than chance: ESA {value}, {labels}; {against}."
    if esa["p_random"] > SIGNIFICANT:
        return (
            f"CCS tells true from false statements (ESA {value}, {labels}), but {esa['p_random']:.0%} of random "
            f"directions do so as well ({against}): this does not show that its search found anything."
        )
    return (
        f"CCS tells true from false statements better than chance and than random directions: ESA {value}, {labels}; "
        f"{against}."
    )


def _collapsed_note(controls: pd.DataFrame, places: list[str]) -> list[str]:
    """Places where CCS found no contrast: .4 of every form has a loss of .2, the least without looking at a state."""
    rows = controls[(controls["control"] == "restarts") & (controls["metric"] == "least_loss")]
    gave_up = [place for place in places if float(_pick(rows, place=place)["value"]) > COLLAPSED]
    if not gave_up:
        return []
    return [
        f"At {len(gave_up)} of {len(places)} places ({_named(gave_up)}) CCS found next to no contrast: its loss stays "
        f"at that of a probe which says .4 of every form (.2), and from that alone come a CI of .32 and a PC of 0, low "
        f"as they are."
    ]


def _distractor_note(controls: pd.DataFrame, places: list[str], config: CCSConfig) -> list[str]:
    rows = controls[controls["control"] == "distractor"]
    if not len(rows):
        return []
    won = [
        place
        for place in places
        if followed(*(_pick(rows, place=place, metric=metric) for metric in ("truth", "distractor"))) == "the word"
    ]
    if not won:
        return [f"The distractor '{config.distractor}' did not win at any place."]
    return [
        f"With '{config.distractor}' appended to half of the pairs, CCS found the word and not truth at "
        f"{len(won)} of {len(places)} places ({_named(won)}): what it finds is whatever contrast is most prominent."
    ]


def _named(places: list[str]) -> str:
    return ", ".join(places[:NAMED]) + (", ..." if len(places) > NAMED else "")
