"""Tables and notes of ``probing refusal select``."""

from collections import Counter
from typing import Any

import pandas as pd

from probing.directions.measurements import SCORES
from probing.instruments.select_direction import CHOSEN, NOT_NEEDED, OUT, Selection
from probing.runs.refusal.select.config import CANDIDATES_FILE, SelectConfig

SHOWN = 12
FEW = 16
"""Fewer prompts of a kind than this are worth a note."""
COLUMNS = ("place", "position", *SCORES, "cosmic", "status", "reason")


def make_tables(config: SelectConfig, selection: Selection, names: dict[int, str]) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown.

    Args:
        config: the job's options.
        selection: the outcome.
        names: text of each refusal token, by id.
    """
    shown = _list_nearest(selection.table)
    every = len(selection.table)
    columns = [name for name in COLUMNS if name != "cosmic" or config.cosmic]
    return {
        "Choices": _list_choices(selection),
        f"Candidates, lowest bypass first ({len(shown)} of {every}; all in {CANDIDATES_FILE})": shown[columns],
        "Candidates by what became of them": _count_reasons(selection.table),
        "Refusal score of the unedited model": pd.DataFrame(
            [
                {"prompts": kind, "used": selection.prompts[kind], "mean refusal score": score}
                for kind, score in selection.base.items()
            ]
        ),
        "Cost in layer-forwards (one block on one prompt with one candidate)": _count_cost(selection),
        "Notes": pd.DataFrame({"note": make_notes(config, selection, names)}),
    }


def _list_nearest(table: pd.DataFrame) -> pd.DataFrame:
    """The candidates that were measured most, in the order of their bypass scores."""
    ordered = table.sort_values(["bypass", "induce"], ascending=[True, False], na_position="last", kind="stable")
    return ordered.head(SHOWN).reset_index(drop=True)


def _list_choices(selection: Selection) -> pd.DataFrame:
    chosen = selection.direction
    wanted = {"bypass, induce and kl": (str(chosen.place), chosen.position)}
    if selection.cosmic is not None:
        wanted["COSMIC"] = selection.cosmic
    rows: list[dict[str, Any]] = []
    for name, (place, position) in wanted.items():
        own = selection.table[(selection.table["place"] == place) & (selection.table["position"] == position)].iloc[0]
        rows.append(
            {"by": name, "place": place, "position": position, **{key: own[key] for key in (*SCORES, "cosmic")}}
        )
    return pd.DataFrame(rows)


def _count_reasons(table: pd.DataFrame) -> pd.DataFrame:
    told = table["status"].where(~table["status"].isin([OUT, NOT_NEEDED]), table["status"] + ": " + table["reason"])
    order = {CHOSEN: 0, "passes": 1}
    counted = sorted(Counter(told).items(), key=lambda entry: (order.get(entry[0], 2), -entry[1]))
    return pd.DataFrame(counted, columns=["outcome", "candidates"])


def _count_cost(selection: Selection) -> pd.DataFrame:
    spent = selection.layer_forwards
    rows: list[dict[str, Any]] = [{"what": score, "layer-forwards": spent[score]} for score in SCORES]
    rows.append({"what": "together", "layer-forwards": sum(spent.values())})
    if selection.cosmic_layers:
        rows.append({"what": "COSMIC, beyond", "layer-forwards": selection.cosmic_layer_forwards})
    rows.append({"what": "a loop over all candidates", "layer-forwards": selection.exhaustive_layer_forwards})
    return pd.DataFrame(rows)


def make_notes(config: SelectConfig, selection: Selection, names: dict[int, str]) -> list[str]:
    """What has to be known to read the tables."""
    tokens = ", ".join(repr(names[id]) for id in selection.direction.facts["refusal_tokens"])
    said = [
        f"Refusal is read from the first token alone: a model that goes on to refuse after another first token than "
        f"{tokens} counts as one that answers, and one that writes nothing of use as one that does not refuse. "
        f"'probing refusal evaluate' looks at whole answers.",
        "The scores are those of the prompts that the direction was chosen on, the best of many; other prompts will "
        "show somewhat less.",
    ]
    fewest = min(selection.prompts.values())
    if fewest < FEW:
        said.append(f"{fewest} prompts of a kind are few to choose among {len(selection.table)} candidates.")
    if selection.cosmic_layers:
        layers = ", ".join(map(str, selection.cosmic_layers))
        named = "the layers" if len(selection.cosmic_layers) > 1 else "layer"
        said.append(
            f"COSMIC looks at {named} {layers}, where harmful and harmless prompts are least alike, and "
            f"needs no refusal tokens: its score is the cosine of harmless states with the direction added to harmful "
            f"ones plus that of harmful states with it ablated to harmless ones. "
            + ("It chooses none, since none keeps to the limit of kl." if selection.cosmic is None else "")
        )
    if not config.exhaustive:
        said.append("Scores that the choice does not depend on were not measured; --exhaustive measures all.")
    return [each.strip() for each in said]
