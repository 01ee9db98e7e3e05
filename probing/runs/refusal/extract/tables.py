"""Tables and notes of ``probing refusal extract``."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.directions.refusal_score import FoundToken
from probing.report.tables import counts
from probing.runs.common.tables import BY_PLACE, note_few_groups, show_ends
from probing.runs.refusal.extract.config import ExtractConfig
from probing.runs.refusal.extract.rows import Material

KINDS = {True: "harmful", False: "harmless"}
FEW_HELD_OUT = 20
STRONG = 0.5
"""Less mass than this on the refusal tokens after harmful prompts, or more after harmless ones, is worth a note."""


def make_tables(
    config: ExtractConfig, material: Material, results: pd.DataFrame, facts: Mapping[str, Any], names: Mapping[int, str]
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown.

    Args:
        config: the job's options.
        material: the prompts.
        results: one row a place and position.
        facts: facts of the record.
        names: text of each refusal token, by id.
    """
    first, last = int(results["position"].min()), int(results["position"].max())
    judged = f"AUROC of {facts['held_out']} held-out prompts"
    titles = {
        last: f"{BY_PLACE}: direction at the last token before the answer (position {last}), where refusal is read",
        first: (
            f"{BY_PLACE}: direction at the last token of the instruction (position {first}), where harmfulness is read"
        ),
    }
    return {
        "Rows by status": counts(facts["rows_by_status"], "status", "rows"),
        "Prompts": _count_prompts(material),
        "Refusal tokens, with their mean probability as first token": _list_tokens(material.tokens, names),
        **{f"{title}; {judged}": _describe_places(results, position) for position, title in titles.items()},
        "Notes": pd.DataFrame({"note": make_notes(config, material, results, facts)}),
    }


def _count_prompts(material: Material) -> pd.DataFrame:
    rows = []
    for kind, name in KINDS.items():
        own = material.harmful == kind
        rows.append(
            {
                "prompts": name,
                "read": int(own.sum()),
                "of the right sign": int((own & _has_right_sign(material)).sum()),
                "to find directions": len(material.pick(kind, held_out=False)),
                "held out": len(material.pick(kind, held_out=True)),
                "median refusal score": float(pd.Series(material.scores[own]).median()),
            }
        )
    return pd.DataFrame(rows)


def _has_right_sign(material: Material) -> Any:
    return (material.scores > 0) == material.harmful


def _list_tokens(tokens: list[FoundToken], names: Mapping[int, str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"token": repr(names[token.id]), "id": token.id, "harmful": token.harmful, "harmless": token.harmless}
            for token in tokens
        ]
    )


def _describe_places(results: pd.DataFrame, position: int) -> pd.DataFrame:
    rows = []
    for _, row in results[results["position"] == position].iterrows():
        known = pd.notna(row["length"])
        rows.append(
            {
                "place": row["place"],
                "AUROC": row["auroc"],
                "95 % interval": show_ends(row, "auroc_"),
                "permuted labels": show_ends(row, "labels_"),
                "angle of 95 % of replicates": f"{row['angle']:.1f} degrees" if known else "no direction",
                "length": row["length"],
                "cosine to the other": row["cosine_to_other"],
            }
        )
    return pd.DataFrame(rows)


def make_notes(config: ExtractConfig, material: Material, results: pd.DataFrame, facts: Mapping[str, Any]) -> list[str]:
    """What has to be known to read the tables."""
    said = [
        "Separation does not make a direction the cause of refusal: harmful and harmless prompts differ in topic too. "
        "'probing refusal select' measures what happens when a direction is taken out or added.",
    ]
    left_out = int((~material.passes).sum())
    if left_out:
        said.append(
            f"{left_out} prompts are left out because the model does with them what it does with the other kind: "
            f"harmful ones with a refusal score below 0, harmless ones above. --no-filter-by-sign keeps them."
        )
    mass = [sum(getattr(token, name) for token in material.tokens) for name in ("harmful", "harmless")]
    if mass[0] < STRONG or mass[1] > STRONG:
        said.append(
            f"The refusal tokens take {mass[0]:.0%} of the first token after harmful prompts and {mass[1]:.0%} after "
            f"harmless ones: they tell the two apart badly, so the model hardly refuses, or other tokens fit better."
        )
    missing = results[results["length"].isna()]["place"].drop_duplicates().tolist()
    if missing:
        said.append(f"At {', '.join(missing)} some positions have no direction: there all prompts have the same state.")
    if facts["held_out"] < FEW_HELD_OUT:
        said.append(f"{facts['held_out']} held-out prompts are few; an AUROC of them says little.")
    changed = results["cosine_to_difference_in_means"].min()
    if config.method != "difference_in_means" or config.winsorize or config.off_harmless_mean:
        said.append(
            f"The cosine of these directions to the plain difference in means is at least {changed:.3f} everywhere; "
            f"it stands in results.parquet for each."
        )
    return said + note_few_groups(facts["groups_held_out"])
