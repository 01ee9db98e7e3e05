"""Arrays that are kept by name, so that an interrupted run does not make them again."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probing.runs.common.layers import Arrays, complete_layers, read_layer_arrays


def complete_named(
    folder: Path, makers: Mapping[str, Callable[[], Arrays]], doing: str, unit: str
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Arrays by name: those that an earlier run measured, and the others, each of which is saved when it is there.

    Args:
        folder: folder of these arrays.
        makers: what measures each of them, by a name that says all that they depend on.
        doing: label of the progress bar.
        unit: what it counts.
    """
    names = list(makers)
    complete_layers(folder, names, lambda name, _: makers[name](), doing, unit=unit)
    return {name: read_layer_arrays(folder, number) for number, name in enumerate(names)}
