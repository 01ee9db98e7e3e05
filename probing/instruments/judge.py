"""A judge of answers that is another program: a JSON object a line in, one out."""

import contextlib
import json
import queue
import shlex
import subprocess
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from probing.directions.judge_text import VERDICTS
from probing.errors import DataInvalid, UsageError

OTHER = "other"
"""Verdict of a judge that has none of ours for an answer."""
LONGEST = 100_000
"""Characters of a line that a judge may write."""
ENDING_SECONDS = 5.0


@dataclass
class Judge:
    """A program that judges answers, as long as a ``with`` block lasts; then it is ended.

    Args:
        command: the program with its arguments, as in a shell, which is not used.
        seconds: time within which it must answer.

    Raises:
        UsageError: no such program.
    """

    command: str
    seconds: float
    _process: "subprocess.Popen[str]" = field(init=False)
    _lines: "queue.Queue[str | None]" = field(init=False, default_factory=queue.Queue)

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
            if not words:
                raise ValueError("it is empty")
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"the judge '{self.command:.80}' cannot be started: {error}") from error
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._pipes[0].close()
        try:
            self._process.wait(0.0 if error is not None else ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _pipes(self) -> tuple[Any, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _listen(self) -> None:
        with contextlib.suppress(ValueError, OSError), self._pipes[1] as stream:
            while line := stream.readline(LONGEST):
                self._lines.put(line)
        self._lines.put(None)

    def ask(self, id: str, prompt: str, answer: str) -> str:
        """The verdict on one answer: one of ours, or "other".

        Raises:
            DataInvalid: the judge ended, did not answer in time, or answered something else.
        """
        try:
            self._pipes[0].write(json.dumps({"id": id, "prompt": prompt, "answer": answer}) + "\n")
            self._pipes[0].flush()
            line = self._lines.get(timeout=self.seconds)
        except queue.Empty:
            raise self._failed(f"did not answer within {self.seconds:g} seconds", id) from None
        except OSError:
            line = None
        if line is None:
            raise self._failed(f"ended (status {self._wait()}) before it answered", id)
        return self._read(line, id)

    def _read(self, line: str, id: str) -> str:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise self._failed(f"wrote no JSON: {line.strip()!r:.80}", id) from None
        if not isinstance(said, dict) or said.get("id") != id:
            raise self._failed(f"answered something else: {line.strip()!r:.80}", id)
        verdict = said.get("verdict")
        if verdict not in (*VERDICTS, OTHER):
            raise self._failed(f"gave the verdict {verdict!r:.40}, which is none of {', '.join(VERDICTS)}, {OTHER}", id)
        return str(verdict)

    def _wait(self) -> int | str:
        try:
            return self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "still running"

    def _failed(self, what: str, id: str) -> DataInvalid:
        return DataInvalid(f"the judge '{self.command:.80}' {what} (row '{id}'); nothing of its verdicts is kept")
