"""One row a pair from all passes: influence, joint rates, what the pilot changed; and the null draws."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.metrics.preference_losses import PreferenceLoss, Slopes
from probing.runs.common.parts import Shard, to_rows
from probing.runs.influence.models import LIKELIHOODS
from probing.runs.influence.parts.passes import PAIR_COLUMNS, SLOPES
from probing.runs.influence.parts.work import JOINT, POINT, TARGET
from probing.types import Problem

TARGET_COLUMNS = ("target_chosen", "target_rejected", "influence")
JOINT_COLUMNS = ("joint_rate", "joint_rejected_rate")
PILOT_COLUMNS = ("pilot_change", "pilot_rejected_change")
ALONG_COLUMN = "pilot_influence"


@dataclass
class Passes:
    """The shards of all passes over the pairs.

    Attributes:
        slopes: of each direction, by its name: for every part of the parameters one shard a block of pairs.
        pilot: ln p before and after the pilot, one shard a block each; None without a pilot.
        null: null draws, for every part of the parameters.
    """

    slopes: dict[str, list[Sequence[Shard]]] = field(default_factory=dict)
    pilot: tuple[list[Shard], list[Shard]] | None = None
    null: list[list[Shard]] = field(default_factory=list)

    @property
    def points(self) -> list[Sequence[Sequence[Shard]]]:
        """Those along the target before every step of the pilot; none if only the start was looked at."""
        later = [parts for name, parts in self.slopes.items() if name.startswith(POINT)]
        return [self.slopes[TARGET], *later] if later else []

    def of_block(self, number: int) -> list[Shard]:
        """All shards of a block of pairs."""
        found = [shards[number] for parts in self.slopes.values() for shards in parts]
        return found + [shards[number] for shards in self.pilot or ()]


def join_passes(passes: Passes, loss: PreferenceLoss) -> list[Shard]:
    """For every block of pairs one shard with all columns."""
    blocks = len(next(iter(passes.slopes.values()))[0])
    return [_join_block(passes, number, loss) for number in range(blocks)]


def _join_block(passes: Passes, number: int, loss: PreferenceLoss) -> Shard:
    shards = passes.of_block(number)
    frames = [shard.rows.to_pandas() for shard in shards]
    frame = frames[0][[*PAIR_COLUMNS, *LIKELIHOODS]].copy()
    for other in frames[1:]:
        # A number that is not finite in one pass makes the pair not finite.
        frame["status"] = frame["status"].mask(frame["status"] == "ok", other["status"])
    good = (frame["status"] == "ok").to_numpy()
    columns = _columns_of(passes, number, frame, loss)
    # The slopes of some losses are not finite where a response has a probability of 1.
    known = good & np.isfinite(list(columns.values())).all(axis=0)
    frame["status"] = frame["status"].mask(good & ~known, "not_finite")
    for name, values in columns.items():
        frame[name] = np.where(known, values, np.nan)
    for name in LIKELIHOODS:
        frame[name] = frame[name].where(known)
    problems = {problem["id"]: problem for shard in reversed(shards) for problem in shard.facts["problems"]}
    detail = f"a slope of the loss {loss.name} is not finite: a response may have a probability of 1"
    problems |= {name: asdict(Problem(name, "not_finite", detail)) for name in frame["id"][good & ~known]}
    facts = {
        "tokens": sum(shard.facts["tokens"] for shard in shards),
        "seconds": sum(shard.facts["seconds"] for shard in shards),
        "batch_tokens": shards[-1].facts["batch_tokens"],
        "problems": [problems[identity] for identity in frame["id"] if identity in problems],
    }
    numbers = [(name, pa.float64()) for name in frame.columns if name not in PAIR_COLUMNS]
    return Shard(to_rows(frame, pa.schema([*(shards[0].rows.schema.field(n) for n in PAIR_COLUMNS), *numbers])), facts)


def _columns_of(
    passes: Passes, number: int, frame: pd.DataFrame, loss: PreferenceLoss
) -> dict[str, NDArray[np.float64]]:
    """The columns besides ln p, as far as they were measured; their order is that of the file."""
    columns: dict[str, NDArray[np.float64]] = {}
    if TARGET in passes.slopes:
        chosen, rejected = _sum_parts(passes.slopes[TARGET], number)
        columns |= dict(zip(TARGET_COLUMNS, (chosen, rejected, _influence(frame, loss, chosen, rejected)), strict=True))
    if JOINT in passes.slopes:
        columns |= dict(zip(JOINT_COLUMNS, _sum_parts(passes.slopes[JOINT], number), strict=True))
    if passes.points:
        columns[ALONG_COLUMN] = _influence_along(passes, number, loss)
    if passes.pilot is not None:
        before, after = (shards[number].rows.to_pandas() for shards in passes.pilot)
        changes = [(after[name] - before[name]).to_numpy(np.float64) for name in LIKELIHOODS]
        columns |= dict(zip(PILOT_COLUMNS, changes, strict=True))
    return columns


def _influence_along(passes: Passes, number: int, loss: PreferenceLoss) -> NDArray[np.float64]:
    """Influence, averaged over the points of the pilot; the loss's reference is the untrained model."""
    assert passes.pilot is not None
    reference = torch.tensor(passes.pilot[0][number].rows.to_pandas()[list(LIKELIHOODS)].to_numpy(np.float64))
    found = []
    for parts in passes.points:
        chosen, rejected = _sum_parts(parts, number)
        found.append(_influence(parts[0][number].rows.to_pandas(), loss, chosen, rejected, reference))
    value: NDArray[np.float64] = np.mean(found, axis=0)
    return value


def _sum_parts(parts: Sequence[Sequence[Shard]], number: int) -> list[NDArray[np.float64]]:
    """Derivatives of both responses, summed over the parts of the parameters."""
    frames = [shards[number].rows.to_pandas() for shards in parts]
    return [np.sum([frame[side].to_numpy(np.float64) for frame in frames], axis=0) for side in SLOPES]


def _influence(
    frame: pd.DataFrame,
    loss: PreferenceLoss,
    chosen: NDArray[np.float64],
    rejected: NDArray[np.float64],
    reference: Tensor | None = None,
) -> NDArray[np.float64]:
    slopes = slopes_of_frame(frame, loss, reference)
    value: NDArray[np.float64] = slopes.chosen.numpy() * chosen - slopes.rejected.numpy() * rejected
    return value


def slopes_of_frame(frame: pd.DataFrame, loss: PreferenceLoss, reference: Tensor | None = None) -> Slopes:
    """Slopes of a loss from the columns of a table; NaN where ln p is not known and counts.

    Args:
        frame: ln p and tokens of both responses.
        loss: the loss.
        reference: ln p under the reference, [pair 2]; None where it is the same model.
    """
    chosen, rejected = (torch.tensor(frame[name].to_numpy(np.float64)) for name in LIKELIHOODS)
    tokens = [torch.tensor(frame[f"{side}_tokens"].to_numpy(np.int64)) for side in SLOPES]
    return loss.slopes(chosen, rejected, tokens[0], tokens[1], reference)


def join_null(passes: Passes, frame: pd.DataFrame, loss: PreferenceLoss) -> pd.DataFrame:
    """Influences of the sampled pairs along every null direction.

    Returns:
        Columns kind, draw, id, influence.
    """
    rows = pa.concat_tables([shard.rows for shards in passes.null for shard in shards]).to_pandas()
    # The kinds in their order, and the draws of each.
    summed = rows.groupby(["kind", "draw", "id"], sort=False, as_index=False)[list(SLOPES)].sum(min_count=1)
    pairs = frame.set_index("id").loc[summed["id"]].reset_index()
    summed["influence"] = _influence(pairs, loss, *(summed[side].to_numpy(np.float64) for side in SLOPES))
    return summed[["kind", "draw", "id", "influence"]]
