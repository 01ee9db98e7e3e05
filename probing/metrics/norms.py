"""Rows whose norm is far above that of the others."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

EXTREME = 100.0
"""Times the median norm from which a row is named."""


def measure_norms(states: Float[Tensor, "*axes row width"]) -> NDArray[np.float64]:
    """Euclidean norm of every row, in float64: half precision would overflow, [... row]."""
    norms: NDArray[np.float64] = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float64).cpu().numpy()
    return norms


def find_extreme_norms(norms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows whose norm is more than a hundred times the median: a lone BOS, an attention sink. They decide any index."""
    return np.flatnonzero(norms > EXTREME * np.median(norms)) if np.median(norms) > 0 else np.zeros(0, dtype=np.int64)
