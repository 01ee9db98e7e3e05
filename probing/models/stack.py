"""The residual stream of one model: its blocks, and the places where its states can be read."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from probing.errors import LayerNotFound
from probing.models.hooks import Tap
from probing.models.language_model import LanguageModel
from probing.models.passes import TRIAL_STARTS, run_backbone, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.writes import BlockWrites, Part, find_writes
from probing.types import Place


@dataclass(frozen=True, eq=False)
class Site:
    """Modules that the states of one place pass: the sum, over ``taps``, of what passes there times its factor."""

    place: Place
    taps: tuple[Tap, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Stack:
    """The residual stream of one model: its blocks in order, and the module that runs them.

    Attributes:
        language_model: the model.
        backbone: takes ``input_ids``; everything below the output head.
        blocks: the layers.
        width: width of the residual stream.
        causal: whether a state depends on earlier tokens only.
        normed: whether the backbone changes the last block's output (by a final norm) before it returns it.
        final_norm: the module that does, if it is a single one.
    """

    language_model: LanguageModel
    backbone: nn.Module
    blocks: tuple[nn.Module, ...]
    width: int
    causal: bool
    normed: bool
    final_norm: nn.Module | None

    def name_of(self, module: nn.Module) -> str:
        """Path of a module within the model."""
        return next((name for name, candidate in self.language_model.model.named_modules() if candidate is module), "?")

    @functools.cached_property
    def writes(self) -> tuple[BlockWrites, ...]:
        """The writes of each block into the residual stream; found, and proved to add up, when first asked for."""
        model = self.language_model.model
        known = recall(model, "writes")
        if known is not None:
            return tuple(writes.attach_to(block) for writes, block in zip(known, self.blocks, strict=True))
        ids = trial_ids(self.language_model, TRIAL_STARTS[0])
        with torch.inference_mode(), use_eval_mode(model):
            found = find_writes(self.blocks, lambda: run_backbone(self.backbone, ids))
        if all(writes.form != "unknown" for writes in found):
            remember(model, "writes", [writes.detach() for writes in found])
        return found

    def sites(self, places: Sequence[Place]) -> list[Site]:
        """The site of each place.

        Raises:
            LayerNotFound: no such layer, or this family has no such place; lists those it has.
        """
        return [self._site(place) for place in places]

    def resolve(self, place: Place) -> Place:
        """The same place with its layer counted from 0.

        Raises:
            LayerNotFound: no such layer.
        """
        if place.layer is None:
            return place
        layers = len(self.blocks)
        if not -layers <= place.layer < layers:
            raise LayerNotFound(
                f"{place}: {self.family} has {layers} layers, 0 to {layers - 1} (or -{layers} to -1 from the end)"
            )
        return Place(place.kind, place.layer % layers)

    @property
    def family(self) -> str:
        """Name of the model's class."""
        return type(self.language_model.model).__name__

    def _site(self, place: Place) -> Site:
        if place.kind == "final_norm":
            if not self.normed:
                raise LayerNotFound(
                    f"{self.family} has no final norm: its states end with resid_post:{len(self.blocks) - 1}"
                )
            return Site(place, (Tap(self.backbone),), (1.0,))
        place = self.resolve(place)
        layer = place.layer or 0
        if place.kind in ("resid_pre", "resid_post"):
            return Site(place, (Tap(self.blocks[layer], before=place.kind == "resid_pre"),), (1.0,))
        written = self.writes[layer]
        parts: tuple[Part, ...] = written.attention if place.kind == "attn_out" else written.mlp
        if not parts:
            raise LayerNotFound(f"{place}: not found in {self.family}; {written.explain(layer)}")
        return Site(place, tuple(Tap(part.module) for part in parts), tuple(part.factor for part in parts))


@dataclass(frozen=True)
class FoundStack:
    """A stack by the names of its modules, which holds no part of the model."""

    backbone: str
    blocks: tuple[str, ...]
    width: int
    causal: bool
    normed: bool
    final_norm: str | None

    @classmethod
    def detach(cls, stack: Stack) -> "FoundStack":
        """The stack by names."""
        norm = None if stack.final_norm is None else stack.name_of(stack.final_norm)
        blocks = tuple(stack.name_of(block) for block in stack.blocks)
        return cls(stack.name_of(stack.backbone), blocks, stack.width, stack.causal, stack.normed, norm)

    def attach_to(self, language_model: LanguageModel) -> Stack:
        """The stack of the model from which it came."""
        part = language_model.model.get_submodule
        return Stack(
            language_model,
            part(self.backbone),
            tuple(map(part, self.blocks)),
            width=self.width,
            causal=self.causal,
            normed=self.normed,
            final_norm=None if self.final_norm is None else part(self.final_norm),
        )


def output_site(stack: Stack) -> Site:
    """What the backbone returns: the state after the final norm, or the last block's where there is none."""
    place = Place("final_norm") if stack.normed else Place("resid_post", len(stack.blocks) - 1)
    return Site(place, (Tap(stack.backbone),), (1.0,))
