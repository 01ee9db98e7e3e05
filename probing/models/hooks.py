"""Looking at tensors while a model runs: hooks that are always removed, and a way to end a pass early."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Tap:
    """One side of a module: what goes into it (``before``) or what comes out."""

    module: nn.Module
    before: bool = False


class Enough(Exception):
    """Raised inside a pass once all requested states were read."""


@contextlib.contextmanager
def tap_modules(taps: Sequence[Tap], receive: Callable[[int, Tensor | None], None]) -> Iterator[None]:
    """Have ``receive(index, tensor)`` called with what passes each tap; the hooks are gone after, whatever happened.

    These are hooks of this package; ``output_hidden_states`` of the library would keep the states of every layer and
    token. The tensor is None where a module takes or returns no tensor.
    """
    handles = []
    try:
        for index, tap in enumerate(taps):
            if tap.before:
                handles.append(
                    tap.module.register_forward_pre_hook(
                        lambda _, args, kwargs, index=index: receive(index, read_input(args, kwargs)), with_kwargs=True
                    )
                )
            else:
                handles.append(
                    tap.module.register_forward_hook(
                        lambda _, args, output, index=index: receive(index, first_tensor(output))
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def record_taps(taps: Sequence[Tap]) -> Iterator[list[tuple[int, Tensor | None]]]:
    """Collect what passes each tap in a list of (index, tensor), in the order in which it passes."""
    seen: list[tuple[int, Tensor | None]] = []
    with tap_modules(taps, lambda index, tensor: seen.append((index, tensor))):
        yield seen


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that a module returned: alone, first in a tuple, or first in a mapping of outputs."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return first_tensor(next(iter(value.values()), None))
    if isinstance(value, tuple | list):
        return first_tensor(value[0]) if value else None
    return None


def replace_first_tensor(value: Any, tensor: Tensor) -> Any:
    """What a module returned, with another tensor in the place of the one that ``first_tensor`` finds.

    Raises:
        TypeError: something that holds no tensor, or holds it in a way that is not known.
    """
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, tuple | list) and value:
        rest = [replace_first_tensor(value[0], tensor), *value[1:]]
        return type(value)(*rest) if hasattr(value, "_fields") else type(value)(rest)
    if isinstance(value, Mapping) and value:
        key = next(iter(value))
        kind: Any = type(value)
        return kind({**value, key: replace_first_tensor(value[key], tensor)})
    raise TypeError(f"a {type(value).__name__} holds no tensor that could be replaced")


def replace_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module was called with, with another tensor in the place of the one that a tap before it reads."""
    if args:
        return (replace_first_tensor(args[0], tensor), *args[1:]), dict(kwargs)
    key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, {**kwargs, key: replace_first_tensor(kwargs[key], tensor)}


def read_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor of states that a module was called with."""
    if args:
        return first_tensor(args[0])
    return first_tensor(kwargs.get("hidden_states", next(iter(kwargs.values()), None)))
