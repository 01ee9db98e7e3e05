"""The trackers of a trainer: rows and alerts reach all of them, and the trainer's own rows stay whole."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd
import transformers

from probing.errors import UsageError

log = logging.getLogger(__name__)

PREFIX = "probing/"
KNOWN = ("wandb", "trackio")
"""Trackers with functions for alerts, ``alert(title=, text=)``, and tables, ``Table(dataframe=)``."""


def find_trainer() -> Any:
    """The trainer that is calling, which callbacks are not given.

    It is the nearest ``transformers.Trainer`` whose method is running in this thread.

    Raises:
        UsageError: no trainer is calling.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, transformers.Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError(
        "the callback was called by no transformers.Trainer (nor one of TRL's, which are such); measure by "
        "probing.score_pairs(model, pairs) in a training loop of your own"
    )


def log_row(trainer: Any, values: Mapping[str, float | str], within: str = "") -> None:
    """Write one row of numbers to the history and to every tracker of a trainer.

    Trainers of TRL average their metrics between two rows of their own and forget them when a row is written, and the
    library takes any row for the one that is due. So the row goes through the library's own ``log``, and what that
    says about the next row is put back.

    Args:
        trainer: a ``transformers.Trainer``.
        values: by name, without the prefix "probing/".
        within: what stands between the prefix and each name.
    """
    due = trainer.control.should_log
    try:
        transformers.Trainer.log(trainer, {f"{PREFIX}{within}{name}": value for name, value in values.items()})
    finally:
        trainer.control.should_log = due


def log_table(trainer: Any, name: str, table: pd.DataFrame) -> None:
    """Hand a table to the trackers of a trainer that take tables.

    Args:
        trainer: a ``transformers.Trainer``.
        name: without the prefix "probing/".
        table: the table.
    """
    if not trainer.is_world_process_zero():
        return
    for tracker in _trackers(trainer, "Table"):
        try:
            step = {"train/global_step": trainer.state.global_step}
            tracker.log({f"train/{PREFIX}{name}": tracker.Table(dataframe=table), **step})
        except Exception as error:  # noqa: BLE001 (a table that does not get through must not end a training run)
            log.warning("%s did not take the table '%s': %s", tracker.__name__, name, error)


def _trackers(trainer: Any, function: str) -> list[Any]:
    """The trackers that report, and that have a function or class of this name."""
    named = [sys.modules.get(name) for name in KNOWN if name in (trainer.args.report_to or [])]
    return [tracker for tracker in named if hasattr(tracker, function)]


def send_alert(trainer: Any, title: str, text: str) -> None:
    """Have the trackers of a trainer that know alerts send one; others have the row and the log.

    Args:
        trainer: a ``transformers.Trainer``.
        title: a few words.
        text: a sentence.
    """
    if not trainer.is_world_process_zero():
        return
    for tracker in _trackers(trainer, "alert"):
        try:
            tracker.alert(title=title, text=text)
        except Exception as error:  # noqa: BLE001 (an alert that does not get through must not end a training run)
            log.warning("%s did not take the alert '%s': %s", tracker.__name__, title, error)
