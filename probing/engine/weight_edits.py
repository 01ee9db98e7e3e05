"""What all edits of weights share: the originals that are kept, ``undo``, and weights that are tied to others."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from probing.errors import EditRefused
from probing.models.writing_tensors import WritingTensor


@dataclass(eq=False, kw_only=True)
class WeightEdit:
    """Weights that were edited.

    Attributes:
        tensors: the parameters that were changed, with the axis.
        parameters: number of elements in them.
        kept_bytes: memory that the originals take, which are kept until ``undo`` or ``forget``.
    """

    tensors: tuple[WritingTensor, ...] = ()
    parameters: int = 0
    kept_bytes: int = 0
    back: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def keep(self) -> None:
        """Keep a copy of every parameter that will be edited."""
        for parameter in {id(tensor.parameter): tensor.parameter for tensor in self.tensors}.values():
            original = parameter.detach().clone()
            self.back.append(functools.partial(_restore, parameter, original))
            self.parameters += parameter.numel()
            self.kept_bytes += parameter.numel() * parameter.element_size()

    def undo(self) -> None:
        """Put every weight back as it was, bit for bit; a second time does nothing."""
        while self.back:
            self.back.pop()()
        self.kept_bytes = 0

    def forget(self) -> None:
        """Give up the originals, so that the edit stays and their memory is free."""
        self.back.clear()
        self.kept_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def untie(whole: Any, edit: WeightEdit, notes: list[str]) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Give whatever else uses an edited parameter one of its own; returns these with what they have to stay.

    Args:
        whole: the model.
        edit: the edit, whose parameters are known and not changed yet.
        notes: where it is noted that something was untied.

    Raises:
        EditRefused: something other than the output head uses it.
    """
    mine = {(id(tensor.owner), tensor.key) for tensor in edit.tensors}
    places = {place_of(tensor.parameter): tensor for tensor in edit.tensors}
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    kept = []
    for name, module in whole.named_modules(remove_duplicate=False):
        for key, parameter in list(module._parameters.items()):
            if parameter is None or place_of(parameter) not in places or (id(module), key) in mine:
                continue
            tensor = places[place_of(parameter)]
            if head is None or module not in set(head.modules()):
                raise EditRefused(f"{tensor.name} cannot be edited alone: {name}.{key} uses the same weights")
            separate(whole, module, key, parameter, edit)
            kept.append((f"{name}.{key}", module, key, parameter.detach().clone()))
            notes.append(f"{name}.{key} was tied to {tensor.name}, and was untied first: it stays as it was")
    return [(name, getattr(module, key), own) for name, module, key, own in kept]


def place_of(parameter: Tensor) -> tuple[Any, ...]:
    """Where the elements of a parameter lie; equal for two that share them."""
    if type(parameter) is not nn.Parameter:
        # Quantised weights in classes of their own have no memory that could be pointed at.
        return (id(parameter),)
    return (parameter.device, parameter.data_ptr(), tuple(parameter.shape))


def separate(whole: nn.Module, module: nn.Module, key: str, parameter: nn.Parameter, edit: WeightEdit) -> None:
    """Replace a shared parameter of one module by a copy, and say so in the configs."""
    configs = [each for each in _configs_of(whole) if getattr(each, "tie_word_embeddings", False)]

    def back() -> None:
        module._parameters[key] = parameter
        for config in configs:
            config.tie_word_embeddings = True

    edit.back.append(back)
    module._parameters[key] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    for config in configs:
        config.tie_word_embeddings = False


def _configs_of(whole: Any) -> Iterator[PretrainedConfig]:
    """The config of a model and that of its text part."""
    yield whole.config
    if whole.config.get_text_config() is not whole.config:
        yield whole.config.get_text_config()


def check_heads(heads: Sequence[tuple[str, nn.Parameter, Tensor]]) -> None:
    """Raise if what was untied did not stay as it was."""
    for name, parameter, original in heads:
        if not torch.equal(parameter, original):
            raise EditRefused(
                f"{name} was changed by the edit of the embedding that it was tied to; the edit was undone"
            )


def _restore(parameter: nn.Parameter, original: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(original)
