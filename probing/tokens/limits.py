"""Limits of rendering: a chat template is a program that comes with a model, and may run for ever or write no end."""

import contextlib
import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jinja2

from probing.errors import ModelInvalid

SECONDS = 20.0
"""Time for one row; real templates take less than a millisecond."""
POLLED_SECONDS = 0.5
FREE_CHARACTERS = 200_000
CHARACTERS_EACH = 32
"""A rendered text may have this many characters, and as many more for each character of the conversation: JSON
escapes make up to twelve of one, and there are templates that write a text twice."""
LARGEST_NUMBER = 1_000_000
"""Largest whole number in a template. Far below it lies all that templates count or cut off."""

Made = TypeVar("Made")


class _StoppedError(BaseException):
    """Ends the thread that renders; no template can catch it."""


def render_in_time(tasks: Sequence[Callable[[], Made]], where: Callable[[int], str]) -> list[Made]:
    """The result of every task, in order, unless one of them does not end.

    A thread of its own works on the tasks, so that this holds in whatever thread it is called; the thread is stopped
    between two steps of the template. A single step that takes for ever cannot be stopped (see ``check_bounded``).

    Args:
        tasks: each renders one row.
        where: names a row in messages, given its index.

    Raises:
        ModelInvalid: the template needs more than ``SECONDS`` for one row.
    """
    made: list[Made] = []
    began = time.monotonic()

    def work() -> None:
        nonlocal began
        for task in tasks:
            began = time.monotonic()
            made.append(task())

    with ThreadPoolExecutor(1, thread_name_prefix="rendering") as pool:
        worker = pool.submit(threading.get_ident).result()
        rendering = pool.submit(work)
        try:
            while not rendering.done():
                with contextlib.suppress(TimeoutError):
                    rendering.exception(POLLED_SECONDS)
                if time.monotonic() - began > SECONDS and not rendering.done():
                    raise ModelInvalid(
                        f"{where(len(made))}: the chat template has not written this conversation within "
                        f"{SECONDS:g} seconds; it may never end. Give the tokenizer another chat template"
                    )
        finally:
            if not rendering.done():
                _stop(worker)
        rendering.result()
    return made


def _stop(thread: int) -> None:
    """Raise an error in a thread, at its next step."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_StoppedError))


def check_bounded(template: str) -> None:
    """Raise unless no single step of a template can be large, as far as its words show.

    ``10**10`` characters are made in one step, which can be neither stopped nor measured before the memory is full.
    Products of several numbers, and numbers that the template makes itself, are not seen here.

    Raises:
        ModelInvalid: the template raises numbers to powers, or names a number above ``LARGEST_NUMBER``.
    """
    fault = _find_unbounded(template)
    if fault is not None:
        raise ModelInvalid(
            f"the chat template {fault}, so that it could fill any memory; no known template needs this. "
            f"Give the tokenizer another chat template"
        )


@functools.lru_cache(maxsize=64)
def _find_unbounded(template: str) -> str | None:
    """What makes a step of a template too large, in words; None where nothing does."""
    before = ""
    try:
        for _, kind, value in jinja2.Environment().lex(template):
            if kind == "integer" and int(value.replace("_", ""), 0) > LARGEST_NUMBER:
                return f"names the number {value:.20}"
            # In a call, ``f(**values)`` is no power.
            if value == "**" and kind == "operator" and before not in ("(", ","):
                return "raises a number to a power (**)"
            before = before if kind == "whitespace" else value
    except (jinja2.TemplateSyntaxError, ValueError):
        # Rendering will say what is wrong with it.
        return None
    return None
