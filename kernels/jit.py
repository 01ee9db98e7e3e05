"""Triton kernels that are stored beside their plain form and compiled only when one is launched."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

# Triton's names of the element types.
ELEMENT_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class LazyKernel:
    """A function in Triton's language, handed to ``triton.jit`` when it is first launched.

    Importing a module must not import triton, which ``@triton.jit`` would do. So a kernel's file says ::

        from __future__ import annotations

        if TYPE_CHECKING:
            import triton.language as tl

        @lazy_jit
        @no_type_check
        def kernel(values, width, block: tl.constexpr): ...

    and is launched as ever: ``kernel[grid](values, width, block=256)``. ``no_type_check`` because the body is not
    Python: neither mypy nor the shape checks of the tests may touch it.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    @cached_property
    def jitted(self) -> Any:
        """The function as ``triton.jit`` returns it."""
        import triton
        import triton.language

        # Triton looks up the names in a kernel among the globals of its module.
        self.function.__globals__["tl"] = triton.language
        return triton.jit(self.function)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        launch: Callable[..., Any] = self.jitted[grid]
        return launch


def lazy_jit(function: Callable[..., None]) -> LazyKernel:
    """``triton.jit``, put off until the first launch."""
    return LazyKernel(function)


@dataclass(frozen=True)
class Variant:
    """One form in which a kernel is launched, so that it can be compiled where there is no card.

    Every kernel's file lists its own in ``compile_variants()``; ``scripts/check_kernels.py`` compiles them all.

    Attributes:
        kernel: the kernel that is launched.
        label: name that tells this form from the others.
        types: Triton's type of every argument at run time, such as ``"*bf16"`` or ``"i32"``.
        constants: the values of the others.
        aligned: the arguments (or addresses) that are multiples of 16, as Triton finds out at each launch.
        instructions: instructions that the machine code has to contain, such as ``"LDG.128"``.
        num_warps: number of warps of a block at launch.
    """

    kernel: LazyKernel
    label: str
    types: dict[str, str]
    constants: dict[str, int]
    aligned: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    num_warps: int = 4
