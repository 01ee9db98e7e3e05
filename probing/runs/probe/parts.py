"""The arrays of one place, or of the baseline."""

from collections.abc import Callable

import torch

from probing.data.surface import scale_surface
from probing.errors import OutOfMemory
from probing.probes.prompts import fit_prompts
from probing.runs.common.layers import Arrays
from probing.runs.common.results import SURFACE
from probing.runs.common.states import Prompts, check_memory
from probing.runs.probe.rows import Material


def fit_place(material: Material, place: str, device: torch.device, report: Callable[[float], None]) -> Arrays:
    """The arrays of one place, or of the baseline that reads lengths and punctuation."""
    config, seen, others, rows = material.config, material.seen, material.fresh, material.rows
    origin = None
    if place == SURFACE:
        states, fresh = _surface_states(seen, others)
    else:
        states = seen.states(place, device)
        fresh = None if others is None else others.states(place, device)
        origin = states.mean(dim=0)
        states, fresh = states - origin, None if fresh is None else fresh - origin
        width, count = states.shape[1], len(states)
        smaller = min(width, count)
        needed = 8 * (3 * count * width + 2 * smaller**2 + 30 * (config.refits + 1) * smaller)
        check_memory(needed, device, f"probing {place} ({count} rows of width {width})")
    try:
        readings = fit_prompts(
            states, rows, config.refits, seed=config.seed, inverse_penalty=config.inverse_penalty, fresh=fresh
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"probing {place} does not fit on the {device}; take fewer rows") from error
    if origin is not None:
        readings = readings.shift_origin(origin)
    report(1.0)
    return readings.to_arrays()


def _surface_states(seen: Prompts, others: Prompts | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    own, new = scale_surface(seen.rows, None if others is None else others.rows)
    return torch.from_numpy(own), None if new is None else torch.from_numpy(new)
