"""The spectra of the changes, block by block of writing tensors, saved as they are made."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.audit import LISTED, Spectrum
from probing.instruments.audit import MatrixSpectrum, TensorPair, gather_changes
from probing.runs.common.layers import complete_layers, read_layer_arrays
from probing.store.manifest import RunFolder

Array = NDArray[np.float64]
MOST_BLOCKS = 8
"""Each block holds a matrix of the width squared until the run is complete."""


def complete_changes(folder: RunFolder, pairs: Sequence[TensorPair]) -> tuple[Tensor, list[MatrixSpectrum]]:
    """What ``gather_changes`` finds in all tensors; what an interrupted run found already is read."""
    size = max(math.ceil(len(pairs) / MOST_BLOCKS), 1)
    blocks = {pairs[start].name: pairs[start : start + size] for start in range(0, len(pairs), size)}

    def make(name: str, report: Callable[[float], None]) -> Mapping[str, Array]:
        arrays = pack(*gather_changes(blocks[name]))
        report(1.0)
        return arrays

    complete_layers(folder.shards, list(blocks), make, "measuring the changes of weights")
    total = torch.zeros(())
    spectra: list[MatrixSpectrum] = []
    for number, block in enumerate(blocks.values()):
        shares, own = unpack(read_layer_arrays(folder.shards, number), block)
        total, spectra = total + shares, spectra + own
    return total, spectra


def pack(shares: Tensor, spectra: Sequence[MatrixSpectrum]) -> dict[str, Array]:
    """The shares and spectra of a block as arrays, one row a matrix."""
    values = np.full((len(spectra), LISTED), np.nan)
    for row, each in enumerate(spectra):
        values[row, : len(each.change.values)] = each.change.values
    return {
        "shares": shares.numpy(),
        "part": np.array([each.part for each in spectra], dtype=np.float64),
        "norm": np.array([each.norm for each in spectra]),
        "change": np.array(
            [[each.change.norm, each.change.effective_rank, each.change.stable_rank] for each in spectra]
        ),
        "values": values,
        "leading": torch.stack([each.change.leading for each in spectra]).numpy(),
        "leading_before": torch.stack([each.leading_before for each in spectra]).numpy(),
    }


def unpack(arrays: Mapping[str, Array], block: Sequence[TensorPair]) -> tuple[Tensor, list[MatrixSpectrum]]:
    """What ``pack`` packed."""
    names = [pair.name for pair in block for _ in range(pair.parts)]
    spectra = []
    for row, name in enumerate(names):
        norm, effective, stable = arrays["change"][row].tolist()
        values = tuple(float(value) for value in arrays["values"][row] if not math.isnan(value))
        change = Spectrum(norm, values, effective, stable, torch.from_numpy(arrays["leading"][row].copy()))
        before = torch.from_numpy(arrays["leading_before"][row].copy())
        spectra.append(MatrixSpectrum(name, int(arrays["part"][row]), float(arrays["norm"][row]), change, before))
    return torch.from_numpy(arrays["shares"].copy()), spectra
