"""Tables of ``probing refusal transfer``."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probing.runs.common.tables import note_floor, show_ends
from probing.runs.refusal.transfer.config import TransferConfig
from probing.runs.refusal.transfer.parts import OWN, Judged
from probing.runs.refusal.transfer.rows import Shared

POOR = 0.9
"""A map whose held-out error is above this is hardly better than the mean alone."""


def make_tables(
    config: TransferConfig, results: pd.DataFrame, found: Sequence[tuple[str, Shared, Judged]]
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    prompts = pd.DataFrame(
        [
            {
                "model": name,
                "place": str(shared.place),
                "fitted": len(shared.fitted),
                "held out": int(shared.held_out.sum()),
                "map": judged.direction.facts["map"],
            }
            for name, shared, judged in found
        ]
    )
    tables = {
        "Models": prompts,
        "AUROC of held-out prompts by their projection": results.apply(_show_auroc, axis=1),
        "Change of the mean refusal log-odds": results.apply(_show_effects, axis=1),
    }
    categories = [{"model": name, **row} for name, _, judged in found for row in judged.categories]
    if categories:
        tables["By category of the harmful prompts"] = pd.DataFrame(categories)
    return {**tables, "Notes": pd.DataFrame({"note": _make_notes(config, results)})}


def _show_auroc(row: "pd.Series[Any]") -> "pd.Series[Any]":
    return pd.Series(
        {
            "model": row["model"],
            "direction": row["direction"],
            "error of the map": row["map_error"],
            "cosine to own": row["cosine_to_own"],
            "AUROC": row["auroc"],
            "95 % interval": show_ends(row, "auroc_"),
            "random through the map": show_ends(row, "random_"),
            "p against random": row["random_p"],
            "map of permuted prompts": show_ends(row, "permuted_"),
        }
    )


def _show_effects(row: "pd.Series[Any]") -> "pd.Series[Any]":
    return pd.Series(
        {
            "model": row["model"],
            "direction": row["direction"],
            "removed, harmful": row["removed"],
            "95 % interval": show_ends(row, "removed_", ".2f"),
            "random removed": show_ends(row, "random_removed_", ".2f"),
            "added, harmless": row["added"],
            "95 % interval of added": show_ends(row, "added_", ".2f"),
            "random added": show_ends(row, "random_added_", ".2f"),
        }
    )


def _make_notes(config: TransferConfig, results: pd.DataFrame) -> list[str]:
    notes = [
        "All directions are added at the length of the model's own difference in means. Random directions are drawn in "
        "the model that the direction is of, and go through the same map; their AUROC is as often below one half as "
        "above, and is often far from it where one direction dominates the states.",
        *note_floor(permutations=config.permutations),
    ]
    for _, row in results[results["direction"] != OWN].iterrows():
        if row["map_error"] > POOR:
            notes.append(
                f"{row['model']}, {row['direction']}: its error on held-out prompts is {row['map_error']:.2f} of that "
                f"of the mean alone, so that it hardly tells where a state goes"
            )
    return notes
