"""Batches that were launched: what is kept of each comes to the host while others run, and goes where its rows are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.engine.readouts import Spots
from probing.engine.transfer import Download, upload
from probing.types import Pooling


@dataclass(frozen=True)
class Readings:
    """Values that were kept of every row, on the CPU (but see ``Stream.keep_on_device``).

    Attributes:
        values: one tensor a site for each pooling: [row width], or [token width] for "tokens" (what ``per_token``
            made of the states, where it is given).
        counts: number of states that counted, [row].
    """

    values: dict[Pooling, list[Tensor]]
    counts: Tensor


class Values:
    """Values that were kept of one batch, by pooling, one tensor a site; on their way to the host unless they stay.

    Args:
        values: the values, on the device.
        staying: poolings that are not brought to the host.
    """

    def __init__(self, values: dict[Pooling, list[Tensor]], staying: Sequence[Pooling] = ()) -> None:
        self._values = values
        self._coming = [pooling for pooling in values if pooling not in staying]
        self._download = Download([value for pooling in self._coming for value in values[pooling]])

    def wait(self) -> dict[Pooling, list[Tensor]]:
        """The values on the device on which they are to stay."""
        arrived = iter(self._download.wait())
        return self._values | {pooling: [next(arrived) for _ in self._values[pooling]] for pooling in self._coming}


@dataclass(frozen=True, eq=False)
class LaunchedBatch:
    """A batch that was launched: numbers of its rows, its values, and the tokens of its rows."""

    spots: Spots
    values: Values
    tokens: int

    def store(self, readings: Readings, offsets: Tensor) -> None:
        """Wait for the values and put them where their rows belong.

        Args:
            readings: readings of all rows; of a pooling that no batch has brought yet there is no tensor, and one is
                made.
            offsets: first token of each row, [row + 1].
        """
        for pooling, sites in self.values.wait().items():
            if not readings.values[pooling]:
                items = int(offsets[-1]) if pooling == "tokens" else len(offsets) - 1
                readings.values[pooling] += [site.new_empty((items, site.shape[-1])) for site in sites]
            where = self.spots.rows
            if pooling == "tokens":
                where = torch.cat([torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in where])
            for whole, part in zip(readings.values[pooling], sites, strict=True):
                whole[upload([where.numpy()], whole.device)[0].long()] = part
