"""Tables of ``probing refusal transfer``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probing.report.tables import to_line
from probing.runs.common.tables import SIGNIFICANT, note_floor, show_ends
from probing.runs.refusal.common.options import HARMFUL, HARMLESS
from probing.runs.refusal.transfer.config import CATEGORIES_FILE, TransferConfig
from probing.runs.refusal.transfer.parts import OWN, Judged
from probing.runs.refusal.transfer.results import OWN_STATES, CategoryMatrix, Texts, count_refusals, judge_categories
from probing.runs.refusal.transfer.rows import LEAST, Shared

POOR = 0.9
"""A map whose held-out error is above this is hardly better than the mean alone."""
MOST_COLUMNS, MOST_CHARACTERS = 8, 20
"""Categories that fit into 80 columns, and characters of their names."""


@dataclass(frozen=True, eq=False)
class Found:
    """Everything that was found in one model.

    Attributes:
        name: of the model.
        shared: the prompts.
        judged: the directions.
        matrix: separation by category.
        texts: answers; None where none were asked for.
    """

    name: str
    shared: Shared
    judged: Judged
    matrix: CategoryMatrix
    texts: Texts | None


def make_tables(config: TransferConfig, results: pd.DataFrame, found: Sequence[Found]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    prompts = pd.DataFrame(
        [
            {
                "model": each.name,
                "place": str(each.shared.place),
                "fitted": len(each.shared.fitted),
                "held out": int(each.shared.held_out.sum()),
                "map": each.judged.direction.facts["map"],
            }
            for each in found
        ]
    )
    tables = {
        "Models": prompts,
        "AUROC of held-out prompts by their projection": results.apply(_show_auroc, axis=1),
        "Change of the mean refusal log-odds": results.apply(_show_effects, axis=1),
    }
    for each in found:
        if each.texts is not None:
            tables[_of("Refused in generated answers", each, found)] = _show_texts(config, each.texts)
    categories = [
        {"model": each.name, **row}
        for each in found
        for row in judge_categories(each.shared, each.judged.direction.vector)
    ]
    if categories:
        tables["By category of the harmful prompts"] = pd.DataFrame(categories)
    for each in found:
        tables |= {_of(title, each, found): table for title, table in _show_matrices(each.matrix).items()}
    return {**tables, "Notes": pd.DataFrame({"note": _make_notes(config, results, found)})}


def _of(title: str, each: Found, found: Sequence[Found]) -> str:
    return title if len(found) == 1 else f"{title} ({each.name})"


def _show_texts(config: TransferConfig, texts: Texts) -> pd.DataFrame:
    """One row a kind of prompts and edit."""
    names = {
        "before": "none",
        "own": "the model's own direction",
        "transferred": "the transferred direction",
        "random": "a random one through the map",
    }
    how = {HARMFUL: "removed", HARMLESS: "added"}
    return pd.DataFrame(
        [
            {
                "prompts": row["kind"],
                "n": row["n"],
                "edit": names[row["edit"]] + ("" if row["edit"] == "before" else f", {how[row['kind']]}"),
                "refused": row["value"],
                "95 % interval": show_ends(pd.Series(row), digits=".2f"),
            }
            for row in count_refusals(config, texts)
        ]
    )


def _show_matrices(matrix: CategoryMatrix) -> dict[str, pd.DataFrame]:
    """One table for the directions of the model itself, and one for those of the other model; none if too wide."""
    tables = {}
    for way in dict.fromkeys(row["through"] for row in matrix.rows):
        rows = [row for row in matrix.rows if row["through"] == way]
        title = "within this model" if way == OWN_STATES else f"across the models ({way})"
        if len(rows) <= MOST_COLUMNS**2:
            tables[f"AUROC by category {title}: extracted in rows, evaluated in columns"] = _show_matrix(rows)
    return tables


def _show_matrix(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Categories numbered, since their names would not fit above the columns; a star where p is small."""
    names = list(dict.fromkeys(row["extracted_in"] for row in rows))
    shown = []
    for number, name in enumerate(names, start=1):
        own = [row for row in rows if row["extracted_in"] == name]
        line = {"extracted in": f"{number} {to_line(name)[:MOST_CHARACTERS]}", "n": own[0]["extracted_n"]}
        for at, row in enumerate(own, start=1):
            line[f"{at}"] = f"{row['auroc']:.2f}{'*' if row['p'] <= SIGNIFICANT else ' '}"
        shown.append(line)
    counts: dict[str, Any] = {"extracted in": "prompts judged", "n": ""}
    counts |= {f"{at}": f"{row['evaluated_n']} " for at, row in enumerate(rows[: len(names)], start=1)}
    return pd.DataFrame([*shown, counts])


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


def _make_notes(config: TransferConfig, results: pd.DataFrame, found: Sequence[Found]) -> list[str]:
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
    for each in found:
        if each.matrix.rows:
            notes.append(
                f"{each.name}: the columns of the matrix by category have the numbers of its rows. Prompts that are "
                f"judged, also those on the diagonal, are held out, and stand against "
                f"{each.matrix.rows[0]['harmless_n']} harmless ones. A star: with permuted labels of these prompts the "
                f"AUROC is as far from one half at most once in 20 times. {CATEGORIES_FILE} has intervals and nulls, "
                f"and all of it where there are more than {MOST_COLUMNS} categories"
            )
        if each.matrix.left_out:
            few = ", ".join(f"{name} ({fitted} + {out})" for name, (fitted, out) in each.matrix.left_out.items())
            notes.append(
                f"{each.name}: {len(each.matrix.left_out)} categories are no part of the matrix, since there are fewer "
                f"than {LEAST} prompts to extract from or held out, or no other category: {few}"
            )
        if each.texts is not None and each.texts.left_out:
            notes.append(f"{each.name}: {each.texts.left_out} prompts are too long to be answered")
    return notes
