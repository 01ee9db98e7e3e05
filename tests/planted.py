"""States with a planted answer, of statements and their opposites."""

import numpy as np
import torch

from probing.probes.ccs_options import CCSOptions
from probing.probes.contrast_states import ContrastOptions, Rows
from probing.statistics.folds import Splits, make_folds


def forms_of(feature, strength=1.0, width=24, noise=0.3, seed=0, axis=0, opposite=-1.0):
    """[4 pair width]: A1, A0, N1, N0, where "the claim is right" has the sign of the feature along one axis.

    Args:
        feature: 1 or -1 a pair: for truth, whether the statement is true.
        strength: of the planted part.
        width: of the states.
        noise: of everything else.
        seed: of the noise.
        axis: along which it is planted.
        opposite: the feature of the opposite, in terms of the statement's: -1 for truth, 1 for something that both
            sentences of a pair share.
    """
    generator = torch.Generator().manual_seed(seed)
    feature = torch.as_tensor(np.asarray(feature), dtype=torch.float32)
    pairs = len(feature)
    about = torch.randn(pairs, 1, width, generator=generator)  # what both sentences speak of
    states = torch.randn(4, pairs, width, generator=generator) * noise + about.transpose(0, 1) * noise
    claims = torch.stack([feature, -feature, opposite * feature, -opposite * feature])
    states[..., axis] += strength * claims
    states[[0, 2], :, -1] += 2.0  # "Yes" and "No" are other words
    states[[1, 3], :, -1] -= 2.0
    return states + torch.linspace(-1, 1, width)


def rows_of(labels, folds=4, units=None, seed=0):
    labels = np.asarray(labels, dtype=bool)
    units = np.arange(len(labels)) if units is None else np.asarray(units)
    return Rows(labels, units, Splits.of(make_folds(units.tolist(), folds, seed)))


def quick(**changes):
    ccs = CCSOptions(restarts=3, epochs=200, learning_rate=0.1)
    return ContrastOptions(**{"ccs": ccs, "random": 12, "pairings": 1, "refits": 3, **changes})


def coins(count, seed=1):
    return np.random.default_rng(seed).random(count) < 0.5
