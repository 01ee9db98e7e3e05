"""The callback that says how the geometry of a model's states changes while it is trained."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.data.places import expand_places
from probing.errors import UsageError
from probing.instruments.reading import set_up
from probing.metrics.clusters.evaluate import aqi, cluster_indices
from probing.metrics.drift import centroid_shift, linear_cka
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.training.alarms import OnAlarm
from probing.training.baselines import open_baseline, save_baseline
from probing.training.callback import AlarmEvent, Measurement, MeasuringCallback
from probing.training.processes import find_rank, gather_all
from probing.training.prompt_set import PromptSet, name_directions
from probing.training.refusal import PROJECTION, DirectionProbe
from probing.types import Estimate, Place

INDICES = ("silhouette", "davies_bouldin", "calinski_harabasz", "xie_beni", "dunn")


class GeometryCallback(MeasuringCallback):
    """Watches the states of a fixed set of prompts while a model is trained.

    For ``transformers.Trainer`` and the trainers of TRL. Logged under ``probing/``, for each place as ``NAME/PLACE``:
    ``cka`` (debiased linear CKA with the states when training began; 1 is the same geometry), ``mean_shift`` (distance
    that the mean moved, in units of the spread of the prompts at the start) and ``mean_shift_noise`` (what the prompts
    alone would give without a shift); where prompts have labels, the cluster indices ``silhouette``,
    ``davies_bouldin``, ``calinski_harabasz``, ``xie_beni``, ``dunn`` and ``aqi_size_free``. For each direction
    ``projection/NAME``, mean over prompts with its 95 % interval, and ``projection_change/NAME``; of several
    directions the first principal component of the course of these changes, ``projection_drift``, with its share,
    ``projection_drift_share``. Places are those of ``layers``, read at the last token before the answer.

    Args:
        prompts: the prompts: texts, rows with a column of labels, a path, "bundled", or a mapping from labels to these.
        every: as for ``DisplacementCallback``.
        layers: numbers of layers, whose outputs are read (-1 is the last); or places, such as "resid_pre:3..9";
            "all" for the outputs of all blocks.
        directions: directions whose projections are watched: as for ``DisplacementCallback``.
        refusal_tokens: tokens of which ``refusal_log_odds`` is measured; by default those that a direction knows.
        alarms: as for ``DisplacementCallback``; of numbers that have intervals.
        on_alarm: as there.
        strict: as there.
        name: as there.
        tokenizer: as there.

    Attributes:
        history: a ``Measurement`` of every step that was measured.

    Raises:
        UsageError, DataInvalid, TypeError, SourceMismatch: options, prompts or directions that cannot be used.
    """

    kind = "geometry"

    def __init__(
        self,
        prompts: Any,
        every: int | float | Collection[int] = 50,
        *,
        layers: str | int | Sequence[int | str] = "all",
        directions: Any = (),
        refusal_tokens: Sequence[int | str] | None = None,
        alarms: Mapping[str, str] | None = None,
        on_alarm: OnAlarm | Callable[[AlarmEvent], None] = "warn",
        strict: bool = False,
        name: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.prompts = PromptSet.read(prompts)
        if len(self.prompts.prompts) < LEAST:
            raise UsageError(f"{self.prompts.name}: {len(self.prompts.prompts)} prompts; drift needs at least {LEAST}")
        self.layers = layers
        self._probe = DirectionProbe(self.prompts, name_directions(directions), refusal_tokens)
        super().__init__(
            every=every,
            alarms=alarms,
            on_alarm=on_alarm,
            strict=strict,
            columns=dict.fromkeys(self._probe.columns(), True),
            name=name,
            tokenizer=tokenizer,
        )
        self._before: dict[Place, Tensor] = {}
        self._projections: dict[str, float] = {}
        self._course: list[list[float]] = []

    def count_rows(self) -> int:
        """Number of prompts."""
        return len(self.prompts.prompts)

    def is_share(self, column: str) -> bool:
        """No number is a share of the prompts."""
        return False

    def begin(self, model: LanguageModel, logged: list[dict[str, Any]] | None) -> None:
        """Read the states before training, or those that were kept when the run began."""
        gather_all(lambda: self._prepare(model))
        values, states = self._probe.read(model)
        self._before = {place: states[place, -1] for place in self._probe.places}
        self._projections = {name: float(own.mean()) for name, own in values.items()}
        self._keep(logged is not None)
        named = [f"{PROJECTION}_change/{name}" for name in self._probe.directions]
        self._course = [[row[name] for name in named] for row in logged or []]

    def _prepare(self, model: LanguageModel) -> None:
        with set_up(model):
            stack = find_stack(model)
        given = [self.layers] if isinstance(self.layers, int | str) else list(self.layers)
        named = [
            "resid_post:all" if one == "all" else f"resid_post:{one}" if isinstance(one, int) else one for one in given
        ]
        self._probe.places = [stack.resolve(place) for place in expand_places(named, len(stack.blocks))]
        self._probe.prepare(model)

    def _keep(self, resumed: bool) -> None:
        """Keep what the model said when the run began; in a resumed run take it in place of what it says now."""
        identity = {
            "prompts": [prompt.id for prompt in self.prompts.prompts],
            "layers": sorted(map(str, self._before)),
            "directions": sorted(self._projections),
        }
        if resumed:
            kept = open_baseline(self._folder, identity)
            self._before = {place: kept[str(place)] for place in self._before}
            self._projections = {name: float(kept[name]) for name in self._projections}
        elif find_rank() == 0:
            tensors = {str(place): own.contiguous() for place, own in self._before.items()}
            tensors |= {name: torch.tensor([own], dtype=torch.float64) for name, own in self._projections.items()}
            save_baseline(self._folder, tensors, identity)

    def measure(self, model: LanguageModel, step: int) -> Measurement:
        """Read the states, and compare them with those before training."""
        values, states = self._probe.read(model)
        further: dict[str, float] = {}
        for place, before in self._before.items():
            found = describe_drift(before, states[place, -1])
            if self.prompts.labels is not None:
                found |= describe_clusters(states[place, -1], self.prompts.labels)
            further |= {f"{name}/{place}": value for name, value in found.items()}
        changes = {
            name.removeprefix(f"{PROJECTION}/"): float(own.mean()) - self._projections[name]
            for name, own in values.items()
            if name.startswith(f"{PROJECTION}/")
        }
        further |= {f"{PROJECTION}_change/{name}": change for name, change in changes.items()}
        further |= self._follow(list(changes.values()))
        estimates: dict[str, Estimate] = self._probe.estimate(values)
        return Measurement(step, estimates, None, further)

    def _follow(self, changes: list[float]) -> dict[str, float]:
        """The first principal component of the course of the projections, once there is a course."""
        self._course.append(changes)
        if len(changes) < 2 or len(self._course) < 2:
            return {}
        along, share = first_component(np.array(self._course))
        return {f"{PROJECTION}_drift": along, f"{PROJECTION}_drift_share": share}


LEAST = 4
"""Prompts that the debiased CKA needs."""


def describe_drift(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far states went from what they were; see ``GeometryCallback``. Nothing where all were the same before.

    Args:
        before: [prompt width].
        after: the same prompts.
    """
    # As at the input of the first block, where the last token of all prompts is the same.
    if bool((before == before[0]).all()):
        return {}
    shift = centroid_shift(before, after)
    noise = shift.noise * shift.relative / shift.norm if shift.norm > 0 else 0.0
    cka = linear_cka(before, after, debiased=True)
    return {"cka": cka, "mean_shift": shift.relative, "mean_shift_noise": noise}


def describe_clusters(states: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Cluster indices of labelled states [prompt width]; none where there are too few labels or prompts of one."""
    if len(set(labels)) < 2 or len(set(labels)) >= len(labels):
        return {}
    found = {name: float(value) for name, value in cluster_indices(states, labels, INDICES).items()}
    return found | {"aqi_size_free": float(aqi(states, labels, form="size_free"))}


def first_component(course: np.ndarray) -> tuple[float, float]:
    """Where the last row lies along the first principal component of all rows and 0, and that component's share.

    Rows are changes since a start, which is 0, so that they are not centred. The component points to where most
    numbers grow.

    Args:
        course: [time number].
    """
    _, spread, components = np.linalg.svd(course, full_matrices=False)
    total = float((spread**2).sum())
    if total == 0:
        return 0.0, float("nan")
    first = components[0] * (1.0 if components[0].sum() >= 0 else -1.0)
    return float(course[-1] @ first), float(spread[0] ** 2 / total)
