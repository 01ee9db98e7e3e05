"""Tables and notes of ``probing refusal trace``."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.directions.surrogate import ACROSS, DECISION, GOOD_F1, NEAR
from probing.directions.trace import WINDOW
from probing.instruments.trace_reading import SURFACE
from probing.instruments.trace_tables import LENS
from probing.report.tables import counts
from probing.runs.common.tables import note_few_groups, pick_row, show_ends
from probing.runs.refusal.trace.config import TraceConfig
from probing.runs.refusal.trace.results import Traced, count_decisions
from probing.runs.refusal.trace.rows import Material

FEW_DRAWS = 20
WITHIN_NAMES = {"within_harmful": "within harmful prompts", "within_harmless": "within harmless prompts"}
HEAD_NAMES = {**WITHIN_NAMES, ACROSS: "across sources"}
NEARLY_KIND = 0.95
"""Share of the decisions that the kind of prompt alone tells, above which a note says so."""


def make_tables(
    config: TraceConfig, material: Material, traced: Traced, facts: Mapping[str, Any], names: Mapping[int, str]
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown.

    Args:
        config: the job's options.
        material: the prompts.
        traced: what was measured.
        facts: facts of the record.
        names: text of each refusal token, by id.
    """
    tables = {"Finding": pd.DataFrame({"finding": tell_findings(material, traced)})}
    tables["Decisions of the model"] = pd.DataFrame(count_decisions(material))
    if material.plan is not None:
        tables["Agreement by place: a linear head with the model's decision (F1 of refusal)"] = _list_agreement(traced)
        for name, words in WITHIN_NAMES.items():
            if name in material.plan.tasks:
                tables[f"Agreement by place {words}"] = _list_within(traced, name)
    if len(traced.sources):
        title = f"Sources: heads that were trained without each, at {traced.source_place}"
        # A source of which nothing is refused has no F1, and one without which one decision is left no head.
        known = traced.sources.rename(columns={"f1": "F1"}).astype(object)
        tables[title] = known.where(known.notna(), "-")
    if traced.lens:
        tables["Logit lens by place: refusal log-odds by final norm and output head"] = _list_lens(traced)
    if len(traced.falls):
        tables["Cliff: fall of the projection at the last token (plateau minus last)"] = _list_falls(traced.falls)
    tables["Refusal tokens, with their mean probability as first token"] = pd.DataFrame(
        [
            {"token": repr(names[each.id]), "id": each.id, "harmful": each.harmful, "harmless": each.harmless}
            for each in material.tokens
        ]
    )
    tables["Rows by status"] = counts(facts["rows_by_status"], "status", "rows")
    tables["Notes"] = pd.DataFrame({"note": make_notes(config, material, traced)})
    return tables


def tell_findings(material: Material, traced: Traced) -> list[str]:
    """What was found, in a sentence for each measurement."""
    said = []
    if material.plan is not None:
        depths = traced.depths
        good, near, best = (_show_share(depths[name]) for name in ("good", "near_best", "best"))
        first = f"reaches F1 {GOOD_F1} at depth {good}" if good else f"never reaches F1 {GOOD_F1}"
        said.append(
            f"A linear head {first}, {NEAR:.0%} of its maximum ({depths['best_f1']:.3f}, at depth {best}) at {near}."
        )
        row = pick_row(traced.places, place=traced.source_place)
        if "kind_agreement" in row:
            said.append(
                f"There a head that was trained to tell harmful from harmless agrees with the decision to an F1 of "
                f"{row['kind_agreement']:.3f}; the head of the decision is {row['above_kind']:+.3f} above it "
                f"({show_ends(row, 'above_kind_')})."
            )
    said += _tell_lens(traced)
    for _, row in traced.falls.iterrows():
        outside = "outside" if not row["random_low"] <= row["cliff"] <= row["random_high"] else "within"
        band = f", {outside} the band of random directions" if not math.isnan(row["random_low"]) else ""
        # What rises is told with the signs of a rise, the ends of its interval too.
        way = "falls by" if row["cliff"] >= 0 else "rises by"
        moved = row if row["cliff"] >= 0 else pd.Series({"low": -row["high"], "high": -row["low"]})
        said.append(
            f"At the {row['at']} the projection of {row['kind']} prompts {way} {abs(row['cliff']):.3g} "
            f"({show_ends(moved, digits='.3g')}){band}."
        )
    return said


def _tell_lens(traced: Traced) -> list[str]:
    lens = traced.describe_lens()
    if not lens:
        return []
    apart, count = lens["separated_from"], lens["layers"]
    said = ["By the logit lens the intervals of the two kinds are never apart for good."]
    if apart is not None:
        said = [
            f"By the logit lens the intervals of the two kinds are apart for good from block {apart} on (of 0 to "
            f"{count - 1})."
        ]
    if lens["suppressed_by"] is not None:
        said.append(
            f"Late-layer suppression: the log-odds of harmful prompts fall by {lens['suppressed_by']:.2f} from block "
            f"{lens['suppressed_from']} to the last one."
        )
    return said


def _show_share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"


def _list_agreement(traced: Traced) -> pd.DataFrame:
    rows = []
    for _, row in traced.places[traced.places[f"{DECISION}_f1"].notna()].iterrows():
        shown: dict[str, Any] = {"place": "lengths and punctuation" if row["place"] == SURFACE else row["place"]}
        shown |= {"depth": _show_share(row["depth"]) or "-", "F1": row[f"{DECISION}_f1"]}
        shown |= {"95 % interval": show_ends(row, f"{DECISION}_f1_")}
        shown |= {"permuted labels": show_ends(row, f"{DECISION}_f1_labels_"), "AUROC": row[f"{DECISION}_auroc"]}
        if "kind_agreement" in row:
            shown |= {"F1 of the head of the kind": row["kind_agreement"], "above it": row["above_kind"]}
            shown |= {"above it 95 %": show_ends(row, "above_kind_")}
        if f"{ACROSS}_f1" in row:
            shown |= {"F1 across sources": row[f"{ACROSS}_f1"], "across 95 %": show_ends(row, f"{ACROSS}_f1_")}
        rows.append(shown)
    return pd.DataFrame(rows)


def _list_within(traced: Traced, name: str) -> pd.DataFrame:
    rows = []
    for _, row in traced.places[traced.places[f"{name}_f1"].notna()].iterrows():
        shown: dict[str, Any] = {"place": "lengths and punctuation" if row["place"] == SURFACE else row["place"]}
        for metric, title in (("f1", "F1"), ("auroc", "AUROC")):
            shown |= {title: row[f"{name}_{metric}"], f"{title} 95 %": show_ends(row, f"{name}_{metric}_")}
            shown |= {f"{title} of permuted labels": show_ends(row, f"{name}_{metric}_labels_")}
        rows.append(shown)
    return pd.DataFrame(rows)


def _list_lens(traced: Traced) -> pd.DataFrame:
    rows = []
    for _, row in traced.places[traced.places[f"{LENS}_gap"].notna()].iterrows():
        shown: dict[str, Any] = {"place": row["place"], "depth": _show_share(row["depth"])}
        for kind in ("harmful", "harmless"):
            shown |= {kind: row[f"{LENS}_{kind}"], f"{kind} 95 %": show_ends(row, f"{LENS}_{kind}_", ".2f")}
        rows.append(shown | {"gap": row[f"{LENS}_gap"]})
    return pd.DataFrame(rows)


def _list_falls(falls: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, row in falls.iterrows():
        shown = {name: row[name] for name in ("at", "kind", "texts", "plateau", "last", "cliff")}
        shown |= {"95 % interval": show_ends(row), "random directions": show_ends(row, "random_")}
        rows.append({**shown, "share of texts that fall": row["falling"]})
    return pd.DataFrame(rows)


def make_notes(config: TraceConfig, material: Material, traced: Traced) -> list[str]:
    """What has to be known to read the tables."""
    groups = min(len(set(material.units[material.harmful == kind].tolist())) for kind in (True, False))
    said = _note_decisions(config, material) + _note_heads(config, material, traced)
    if material.lens is None:
        said.append(f"There is no logit lens: {material.why_no_lens}.")
    else:
        said.append("The logit lens reads early blocks by a head that was not trained for them; compare the two kinds.")
    return said + _note_cliffs(config) + note_few_groups(groups)


def _note_decisions(config: TraceConfig, material: Material) -> list[str]:
    if config.answers is None:
        return [
            "Decisions are signs of the refusal log-odds at the first token: a refusal that begins otherwise counts as "
            "compliance. --answers takes verdicts on generated answers instead."
        ]
    said = ["Decisions are verdicts on the generated answers, by phrases."]
    unknown = int((~material.decided).sum())
    if unknown:
        said.append(
            f"{unknown} prompts have no answer in the evaluation, or one that is empty, degenerate or never leaves the "
            f"thought: no head is fitted on them."
        )
    return said


def _note_heads(config: TraceConfig, material: Material, traced: Traced) -> list[str]:
    plan = material.plan
    if plan is None:
        return ["No heads were fitted (--no-classifier)."]
    said = []
    same = (material.refused == material.harmful)[material.decided].mean()
    if same >= NEARLY_KIND:
        said.append(
            f"Of {same:.0%} of the prompts the decision is the kind of prompt, so that a head agrees with the decision "
            f"as soon as it tells the kinds apart: its F1 says nothing of the decision beyond the kind."
        )
    said += [f"Not measured, {HEAD_NAMES.get(name, name)}: {why}." for name, why in plan.why_not.items()]
    said.append("A head reads what is there; 'probing refusal evaluate' measures what the model does with a direction.")
    if ACROSS not in plan.why_not:
        said.append(
            f"Across sources, each of {len(plan.sources)} is left out in turn; the interval is over texts: "
            f"it does not say what another source would bring."
        )
    if config.refits < FEW_DRAWS:
        said.append(f"The band of permuted labels is of {config.refits} refits, so its ends are rough.")
    return said


def _note_cliffs(config: TraceConfig) -> list[str]:
    if config.direction is None:
        return ["No direction was given (--direction), so no projections were traced."]
    said = [
        f"The cliff is the median over the {WINDOW} tokens before the last one, minus the value there; the first token "
        f"of a sequence never counts. Tokens of the template lie apart from others along most directions."
    ]
    if config.answers is not None:
        said.append("Answers are tokenised again from their text, and can differ from the tokens that were generated.")
    return said
