"""States and first tokens of the prompts in each model, kept, so that an interrupted run does not read them again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.instruments.direction_transfer import read_states
from probing.instruments.directions import read_refusals
from probing.models.language_model import LanguageModel
from probing.runs.common.layers import Arrays
from probing.runs.refusal.common.kept import complete_named
from probing.runs.refusal.common.prompts import Kinds, split_kinds
from probing.types import Place


def read_kept_states(
    folder: Path, name: str, model: LanguageModel, kinds: Kinds, place: Place, position: int
) -> dict[str, Tensor]:
    """State of every prompt that a model can read, by id; see ``read_states``."""
    ids = [prompt.id for prompt in kinds.prompts]

    def read() -> Arrays:
        found = read_states(model, kinds.prompts, place, position)
        rows = [row for row, id in enumerate(ids) if id in found]
        # Float32 values stay what they are in float64.
        return {"rows": np.array(rows, dtype=np.float64), "states": _stack([found[ids[row]] for row in rows])}

    known = complete_named(folder, {f"{name}, {place}": read}, "reading", "models")[f"{name}, {place}"]
    states = torch.from_numpy(known["states"]).float()
    return dict(zip((ids[int(row)] for row in known["rows"]), states, strict=True))


def read_kept_refusals(
    folder: Path, model: LanguageModel, kinds: Kinds, tokens: Sequence[int] | None
) -> tuple[list[int], NDArray[np.bool_]]:
    """Ids of the refusal tokens of a model, and whether each prompt is treated as its label says."""

    def read() -> Arrays:
        refused, answered = split_kinds(kinds.prompts, kinds.harmful)
        reading = read_refusals(model, refused, answered, tokens)
        passes = [
            prompt.id in reading.scores and reading.passes(prompt, harmful)
            for prompt, harmful in zip(kinds.prompts, kinds.harmful, strict=True)
        ]
        ids = np.array([each.id for each in reading.tokens], dtype=np.float64)
        return {"tokens": ids, "passes": np.array(passes, dtype=np.float64)}

    known = complete_named(folder, {f"refusals by {tokens}": read}, "reading", "models")[f"refusals by {tokens}"]
    return [int(id) for id in known["tokens"]], known["passes"] > 0


def _stack(states: Sequence[Tensor]) -> NDArray[np.float64]:
    return torch.stack(list(states)).double().numpy()
