"""The trackers of a trainer: rows and alerts reach all of them, and the trainer's own rows stay whole."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import transformers

from probing.errors import UsageError

log = logging.getLogger(__name__)

PREFIX = "probing/"
ALERTING = ("wandb", "trackio")
"""Trackers with a function ``alert(title=, text=)`` of their own."""


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


def send_alert(trainer: Any, title: str, text: str) -> None:
    """Have the trackers of a trainer that know alerts send one; others have the row and the log.

    Args:
        trainer: a ``transformers.Trainer``.
        title: a few words.
        text: a sentence.
    """
    if not trainer.is_world_process_zero():
        return
    for name in ALERTING:
        tracker = sys.modules.get(name)
        if name not in (trainer.args.report_to or []) or not hasattr(tracker, "alert"):
            continue
        try:
            tracker.alert(title=title, text=text)  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 (an alert that does not get through must not end a training run)
            log.warning("%s did not take the alert '%s': %s", name, title, error)
