"""Models of callers are left as they were found, whatever ends a call and wherever it does."""

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from probing.engine.attention import configs_of
from probing.engine.stream import ONE_AT_A_TIME
from probing.models.proofs import OF_A_PASS

OURS = "probing."
HOOKS = (
    ("_forward_hooks", ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
    ("_forward_pre_hooks", ("_forward_pre_hooks_with_kwargs",)),
)


class LeaveAsFound:
    """Puts a model back into the state in which it was when this object was made.

    Reading a model changes it for a while: its training mode, hooks, ``forward``, attention, settings of its configs,
    and which parameters want gradients. What changes it also undoes it, but an interrupt (Ctrl-C) may come between the
    change and the block that would undo it, or within the undoing. So a call of a user runs inside of two of these,
    one around the other: entering one changes nothing; leaving it compares, and undoes whatever differs while further
    interrupts wait; and what ends the inner one before it has begun is left to the outer one.

    Both stand within the lock of the model, on one line with it, since another thread may be reading the model.

    Hooks and changes of the caller stay: only hooks of this package are taken off.

    Args:
        model: a transformers model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._parameters = list(model.parameters())
        self._configs = configs_of(model)
        self._kinds = sorted({"cpu", *(parameter.device.type for parameter in self._parameters)} - {"meta"})
        self._before = self._look()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            # Frames that have ended may hold contexts that were entered and not left; they are left now, and not when
            # the notebook forgets the error.
            traceback.clear_frames(trace)
        if self._look() != self._before:
            with _hold_interrupts():
                self._undo()
            _restore_handler(self._before["handler"])

    def _look(self) -> dict[str, Any]:
        """The state as it is."""
        return {
            "training": [module.training for module in self._modules],
            "forward": [vars(module).get("forward") for module in self._modules],
            "hooks": [self._hooks_of(module, name) for module in self._modules for name, _ in HOOKS],
            "gradients": [parameter.requires_grad for parameter in self._parameters],
            "attention": [config._attn_implementation for config in self._configs],
            "settings": [{name: vars(c)[name] for name in OF_A_PASS if name in vars(c)} for c in self._configs],
            "grad mode": torch.is_grad_enabled(),
            "autocast": [torch.is_autocast_enabled(kind) for kind in self._kinds],
            "autocast depth": _find_autocast_depth(),
            "turns": _count_turns(),
            "handler": signal.getsignal(signal.SIGINT),
        }

    def _hooks_of(self, module: nn.Module, name: str) -> set[int]:
        """Numbers of the hooks of this package on a module."""
        hooks = getattr(module, name)
        return {number for number, hook in hooks.items() if str(getattr(hook, "__module__", "")).startswith(OURS)}

    def _undo(self) -> None:
        before = self._before
        for module, training, forward in zip(self._modules, before["training"], before["forward"], strict=True):
            module.training = training
            if vars(module).get("forward") is not forward:
                vars(module).update({"forward": forward})
                if forward is None:
                    del vars(module)["forward"]
        self._take_hooks_off()
        for parameter, wanted in zip(self._parameters, before["gradients"], strict=True):
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
        for config, attention, settings in zip(self._configs, before["attention"], before["settings"], strict=True):
            if config._attn_implementation != attention:
                config._attn_implementation = attention
            vars(config).update(settings)
        self._restore_thread()

    def _take_hooks_off(self) -> None:
        known = iter(self._before["hooks"])
        for module in self._modules:
            for name, others in HOOKS:
                for number in self._hooks_of(module, name) - next(known):
                    for kind in (name, *others):
                        getattr(module, kind).pop(number, None)

    def _restore_thread(self) -> None:
        """Put back what belongs to the thread and not to the model."""
        before = self._before
        torch.set_grad_enabled(before["grad mode"])
        for kind, enabled in zip(self._kinds, before["autocast"], strict=True):
            torch.set_autocast_enabled(kind, enabled)
        for _ in range(_find_autocast_depth() - before["autocast depth"]):
            # Autocast forgets its copies of the weights at the outermost level only.
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
        for _ in range(_count_turns() - before["turns"]):
            ONE_AT_A_TIME.release()


def _restore_handler(handler: Any) -> None:
    """Put the handler of interrupts back, which only the main thread may."""
    if threading.current_thread() is threading.main_thread() and callable(handler):
        signal.signal(signal.SIGINT, handler)


def _count_turns() -> int:
    """How many times this thread holds the lock under which a model is read."""
    # Only its representation and what the standard library's own tests use tell it; early releases of 3.11 tell less.
    ask = getattr(ONE_AT_A_TIME, "_recursion_count", None) or getattr(ONE_AT_A_TIME, "_is_owned")  # noqa: B009
    return int(ask())


def _find_autocast_depth() -> int:
    """Number of autocast blocks around; torch tells it only to those who change it."""
    return int(torch.autocast_increment_nesting() and torch.autocast_decrement_nesting())


@contextlib.contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Have the first interrupt (Ctrl-C) inside the block wait for its end; a second one comes through."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, Any]] = []

    def hold(number: int, frame: Any) -> None:
        if held:
            handler(number, frame)
        held.append((number, frame))

    try:
        signal.signal(signal.SIGINT, hold)
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0])
