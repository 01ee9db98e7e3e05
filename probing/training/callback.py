"""What the callbacks share: when they measure, what they log, alarms, and that nothing of theirs ends a run."""

import contextlib
import json
import logging
import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from probing.errors import UsageError
from probing.models.in_memory import as_language_model
from probing.models.language_model import LanguageModel
from probing.shown import Shown
from probing.training.alarms import ON_ALARM, Alarm, OnAlarm, explain_silence, read_alarms
from probing.training.keeping import leave_training
from probing.training.processes import check_whole, find_rank, gather_all
from probing.training.schedule import Schedule
from probing.training.trainer_log import find_trainer, log_row, log_table, send_alert
from probing.types import Estimate

log = logging.getLogger(__name__)

FOLDER = "probing"
"""Folder within the output folder of a training run."""
HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True, repr=False)
class Measurement(Shown):
    """What was measured after one step.

    Attributes:
        step: number of optimizer steps that were done.
        estimates: numbers by name, with their intervals; without one, both ends are NaN.
        verdict: a sentence on what they mean; None where there is none.
        further: numbers by name that have no alarms, such as those of groups.
        tables: tables by name, for trackers that take them.
    """

    step: int
    estimates: Mapping[str, Estimate]
    verdict: str | None
    further: Mapping[str, float]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def shown_facts(self) -> Mapping[str, object]:
        """The step, the verdict and the numbers with intervals."""
        numbers = {name: f"{own.value:.3g} [{own.low:.3g}, {own.high:.3g}]" for name, own in self.estimates.items()}
        return {"step": self.step} | ({} if self.verdict is None else {"verdict": self.verdict}) | numbers

    def row(self) -> dict[str, float | str]:
        """The numbers as they are logged: each by its name, with the ends of its interval; those that are finite."""
        values: dict[str, float | str] = {}
        for name, own in self.estimates.items():
            ends = {name: own.value, f"{name}_low": own.low, f"{name}_high": own.high}
            values |= {key: value for key, value in ends.items() if math.isfinite(value)}
        values |= {name: value for name, value in self.further.items() if math.isfinite(value)}
        return values if self.verdict is None else values | {"verdict": self.verdict}


@dataclass(frozen=True, repr=False)
class AlarmEvent(Shown):
    """An alarm that went off.

    Attributes:
        alarm: which one.
        measured: the number, with its interval.
        step: after how many optimizer steps.
        control: the trainer's; what is set there (``should_training_stop``, ``should_save``) happens.
    """

    alarm: Alarm
    measured: Estimate
    step: int
    control: TrainerControl

    def shown_facts(self) -> Mapping[str, object]:
        """The alarm, and what set it off."""
        return {"alarm": self.alarm, "measured": self.measured.value, "step": self.step}

    def __str__(self) -> str:
        interval = f"[{self.measured.low:.3g}, {self.measured.high:.3g}]"
        return f"step {self.step}: {self.alarm.column} is {self.measured.value:.3g} {interval} ({self.alarm})"


class MeasuringCallback(Shown, TrainerCallback):
    """A callback that measures the model at some steps and logs what it found; its parts are for subclasses.

    Args:
        every: at which steps: see ``Schedule``.
        alarms: thresholds by name of a number, such as ``{"share_displaced": "> 0.2"}``; an alarm goes off once its
            whole 95 % interval is beyond it, and again only after it was not.
        on_alarm: "warn" logs a warning and has trackers send an alert; "stop" ends the training besides; "save" has a
            checkpoint saved besides; or a function that is called with the ``AlarmEvent``.
        strict: whether an error of the callback ends the training. By default it is logged, and the callback does
            nothing from then on.
        columns: the numbers that are measured, and whether each has an interval.
        name: name of this callback where a trainer has several of its kind: then numbers are logged as
            ``probing/NAME/...``, and files lie in a folder of that name.
        tokenizer: the tokenizer, where the trainer has none.

    Raises:
        UsageError: no such steps, numbers, thresholds or actions.
    """

    kind = "callback"

    def __init__(
        self,
        every: int | float | Collection[int],
        alarms: Mapping[str, str] | None,
        on_alarm: OnAlarm | Callable[[AlarmEvent], None],
        strict: bool,
        columns: Mapping[str, bool],
        name: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        if name is not None and not re.fullmatch(r"[\w.=-]+", name):
            raise UsageError(f"name is {name!r}; it becomes part of file names, so write letters, digits, '_' and '-'")
        self.name = name or self.kind
        self.tokenizer = tokenizer
        self.schedule = Schedule(every)
        self.alarms = read_alarms(alarms, columns)
        if not callable(on_alarm) and on_alarm not in ON_ALARM:
            raise UsageError(f"on_alarm is {on_alarm!r}; give {', '.join(map(repr, ON_ALARM))} or a function")
        self.on_alarm = on_alarm
        self.strict = strict
        self.history: list[Measurement] = []
        self.seconds = 0.0
        self._began = 0.0
        self._failed: str | None = None
        self._ringing: set[str] = set()
        self._folder = Path()

    def shown_facts(self) -> Mapping[str, object]:
        """What it measures when, and how far it came."""
        facts: dict[str, object] = {"name": self.name, "every": self.schedule.every, "rows": self.count_rows()}
        facts |= {"alarms": ", ".join(map(str, self.alarms))} if self.alarms else {}
        facts["measurements"] = len(self.history)
        return facts if self._failed is None else facts | {"ended by": self._failed}

    @abstractmethod
    def begin(self, model: LanguageModel, logged: list[dict[str, Any]] | None) -> None:
        """Prepare what is measured on, and what it is compared with.

        Args:
            model: the model that is trained.
            logged: rows that were logged before the checkpoint from which a run is resumed; what is compared with then
                lies in ``self._folder``. None for a run that begins.
        """

    @abstractmethod
    def measure(self, model: LanguageModel, step: int) -> Measurement:
        """Measure the model after a step."""

    @abstractmethod
    def count_rows(self) -> int:
        """Number of pairs or prompts that are measured."""

    @abstractmethod
    def is_share(self, column: str) -> bool:
        """Whether a number is a share of the rows."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Measure what later values are compared with; in a resumed run it is read."""
        self._began, self.seconds, self.history = time.perf_counter(), 0.0, []
        self._failed, self._ringing = None, set()
        self._folder = Path(args.output_dir or ".") / FOLDER / self.name
        with self._guarded(), self._reading(given) as model:
            check_whole(model.model)
            self._check_name(find_trainer())
            logged = gather_all(lambda: self._forget_later_steps(state.global_step) if find_rank() == 0 else [])
            self.begin(model, logged[0] if state.global_step > 0 else None)
            for alarm in self.alarms:
                silence = explain_silence(alarm, self.count_rows(), self.is_share(alarm.column))
                if silence is not None:
                    log.warning("%s: %s", type(self).__name__, silence)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Measure, if this step is due."""
        if self.schedule.is_due(state.global_step, state.max_steps):
            self._measure(state, control, given)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Measure the model as it ends, unless the last step was measured; and say what measuring cost."""
        if state.global_step > 0 and (not self.history or self.history[-1].step != state.global_step):
            self._measure(state, control, given)
        whole = time.perf_counter() - self._began
        if self.history and state.is_world_process_zero:
            log.warning(
                "%s: %d measurements took %.1f s, %.1f %% of the training run's %.1f s",
                type(self).__name__,
                len(self.history),
                self.seconds,
                100 * self.seconds / whole,
                whole,
            )

    def _check_name(self, trainer: Any) -> None:
        others = [each for each in trainer.callback_handler.callbacks if isinstance(each, MeasuringCallback)]
        if any(each is not self and each.name == self.name for each in others):
            raise UsageError(
                f"two callbacks of this trainer are called '{self.name}', and would write the same numbers and files; "
                f"give each a name"
            )

    def _measure(self, state: TrainerState, control: TrainerControl, given: Mapping[str, Any]) -> None:
        # Every process has to know whether one of them gave up: it would not measure its share.
        self._failed = next((failed for failed in gather_all(lambda: self._failed) if failed is not None), None)
        if self._failed is not None:
            return
        with self._guarded():
            with self._reading(given) as model:
                found = self.measure(model, state.global_step)
            self.history.append(found)
            trainer = find_trainer()
            within = "" if self.name == self.kind else f"{self.name}/"
            log_row(trainer, found.row(), within)
            for name, table in found.tables.items():
                log_table(trainer, f"{within}{name}", table)
            if state.is_world_process_zero:
                self._write(found)
                if found.verdict is not None:
                    log.info("step %d: %s", found.step, found.verdict)
            self._ring(trainer, found, control)

    def _ring(self, trainer: Any, found: Measurement, control: TrainerControl) -> None:
        """Let the alarms go off whose numbers are beyond their thresholds now and were not before."""
        for alarm in self.alarms:
            measured = found.estimates[alarm.column]
            if not alarm.goes_off(measured):
                self._ringing.discard(str(alarm))
                continue
            if str(alarm) in self._ringing:
                continue
            self._ringing.add(str(alarm))
            event = AlarmEvent(alarm, measured, found.step, control)
            text = f"{event}" if found.verdict is None else f"{event}; {found.verdict}"
            if trainer.is_world_process_zero():
                log.warning("%s: %s", type(self).__name__, text)
            send_alert(trainer, f"probing: {alarm}", text)
            if callable(self.on_alarm):
                self.on_alarm(event)
            elif self.on_alarm == "stop":
                control.should_training_stop = True
            elif self.on_alarm == "save":
                control.should_save = True

    def _forget_later_steps(self, step: int) -> list[dict[str, Any]]:
        """Remove what an earlier run in this folder wrote after a step, at which this one begins; the rows up to it."""
        for path in self._folder.glob("*-*.parquet"):
            number = path.stem.rpartition("-")[2]
            if number.isdecimal() and int(number) > step:
                path.unlink()
        history = self._folder / HISTORY_FILE
        if not history.is_file():
            return []
        # Of a run that was killed the last line may be cut short; it is beyond every checkpoint.
        lines = [line for line in history.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
        kept = [row for row in map(json.loads, lines) if row["step"] <= step]
        history.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        return kept

    def _write(self, found: Measurement) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / HISTORY_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": found.step, **found.row()}) + "\n")

    @contextlib.contextmanager
    def _reading(self, given: Mapping[str, Any]) -> Iterator[LanguageModel]:
        """The model that is trained, left as it was found; what this takes is counted."""
        began = time.perf_counter()
        tokenizer = given.get("processing_class") if self.tokenizer is None else self.tokenizer
        model = as_language_model((given["model"], tokenizer))
        try:
            with leave_training(model):
                yield model
        finally:
            self.seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Errors are logged and end the callback, not the training, unless that is wanted."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._failed = f"{type(error).__name__}: {error}"
            log.error("%s: nothing more is measured in this run, because %s", type(self).__name__, self._failed)
