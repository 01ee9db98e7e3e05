"""Labelled prompts and their states, captured now or taken from a store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.data.tables import Table, canonical, is_empty
from probing.errors import DataInvalid, SourceMismatch, UsageError
from probing.models.load import LanguageModel
from probing.runs.capture import CaptureConfig
from probing.runs.capture_shards import capture_into, content_of_row
from probing.runs.probe import TEXT
from probing.store.activations import ActivationStore, open_store
from probing.store.manifest import MANIFEST, claim
from probing.types import LabelledPrompt, Problem


@dataclass(frozen=True, eq=False)
class Prompts:
    """Labelled rows that have states.

    Attributes:
        rows: those that are ok.
        labels: of each, as the job calls them.
        units: rows of one unit have the same text.
        problems: the others.
        store: where the states are.
        index: row of each in the store.
    """

    rows: list[LabelledPrompt]
    labels: NDArray[Any]
    units: list[int]
    problems: dict[str, Problem]
    store: ActivationStore
    index: list[int]

    def states(self, place: str, device: torch.device) -> torch.Tensor:
        """[row width], in float32."""
        return self.store.read(place)[self.index].to(device).float()


def values_to_split(config: Any, table: Table, prompts: Sequence[LabelledPrompt]) -> list[str] | None:
    """For each row the value that must not be in two folds; None where only equal texts must not."""
    if config.split_by == TEXT:
        return None
    if config.split_by == "category" and any(prompt.category is not None for prompt in prompts):
        values: list[Any] = [prompt.category for prompt in prompts]
    elif len(table.rows) == len(prompts):
        values = [row.get(config.split_by) for row in table.rows]
    else:
        raise UsageError(f"{table.path}: rows of preference pairs can be split by text only")
    missing = [prompt.id for prompt, value in zip(prompts, values, strict=True) if is_empty(value)]
    if missing:
        raise DataInvalid(f"{table.path}: row '{missing[0]}' has no {config.split_by} to split by")
    return [str(value) for value in values]


def captured(
    folder: Path,
    config: Any,
    model: str,
    table: Table,
    prompts: list[LabelledPrompt],
    source: LanguageModel | ActivationStore,
    **request: Any,
) -> ActivationStore:
    """The states of the prompts: captured into a folder, unless there is a store already.

    Args:
        folder: within that of the run.
        config: of the run, with the options of a model.
        model: as it was named.
        table: where the prompts come from.
        prompts: what is read.
        source: the model, or the store.
        request: which state is read: ``pooling``, ``over`` and other options of a capture.
    """
    if isinstance(source, ActivationStore):
        return source
    options: dict[str, Any] = {"data": table.path, "eos": False, **request}
    capture_config = CaptureConfig(
        model=model,
        places=config.places,
        out=folder,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        batch_tokens=config.batch_tokens,
        max_length=config.max_length,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        repair=True,  # what an interrupted run left is read again, and made anew where it is damaged
        **options,
    )
    with claim(folder, "capture", MANIFEST) as inner:
        capture_into(inner, capture_config, table, prompts, source)
    return open_store(folder)


def request_of(config: Any) -> dict[str, Any]:
    """Which state a job over labelled prompts reads."""
    return {"pooling": config.pooling, "over": config.over, "chat": config.chat}


def join_states(
    store: ActivationStore, path: str, prompts: Sequence[LabelledPrompt], label_of: Callable[[LabelledPrompt], Any]
) -> Prompts:
    """The rows that have a label and states.

    Raises:
        SourceMismatch: the store was made from other rows.
        DataInvalid: no row is left.
    """
    known = store.rows
    content = dict(zip(known["id"], known["content"], strict=True))
    wrong = [prompt.id for prompt in prompts if content.get(prompt.id) != content_of_row(prompt)]
    if wrong:
        raise SourceMismatch(
            f"{store.path}: row '{wrong[0]}' of {path} is not in it, or with another text or label "
            f"({len(wrong)} of {len(prompts)} rows)"
        )
    problems = {
        row["id"]: Problem(row["id"], row["status"], row["detail"] or "")
        for row in known[known["status"] != "ok"].to_dict("records")
    }
    for prompt in prompts:
        if prompt.label is None:
            problems.setdefault(prompt.id, Problem(prompt.id, "no_label", "the row has no label"))
    at = {id: row for row, id in enumerate(store.ids)}
    kept = [prompt for prompt in prompts if prompt.id not in problems]
    ours = {prompt.id for prompt in prompts}
    if not kept:
        first = next(problem for problem in problems.values() if problem.id in ours)
        raise DataInvalid(f"{path}: no row could be read; the first: '{first.id}' ({first.status}, {first.detail})")
    units = text_units(kept)
    labels = np.array([label_of(prompt) for prompt in kept])
    mine = {id: problem for id, problem in problems.items() if id in ours}
    return Prompts(kept, labels, units, mine, store, [at[prompt.id] for prompt in kept])


def text_units(prompts: Sequence[LabelledPrompt]) -> list[int]:
    """Rows of equal text have one number."""
    texts: dict[str, int] = {}
    return [texts.setdefault(text_key(prompt), len(texts)) for prompt in prompts]


def text_key(prompt: LabelledPrompt) -> str:
    """The text of a row; white space counts once."""
    text = " ".join(prompt.text.split()) if isinstance(prompt.text, str) else prompt.text
    return canonical(text).decode()


def check_same_request(left: ActivationStore, right: ActivationStore) -> None:
    """Raise unless both stores hold the same states of the same model.

    Raises:
        SourceMismatch: names what differs.
    """
    for name in ("places", "request", "dtype", "width"):
        if left.facts[name] != right.facts[name]:
            raise SourceMismatch(f"{right.path}: {name} {right.facts[name]}, of {left.path}: {left.facts[name]}")
    if left.source.weights_sha256 != right.source.weights_sha256:
        raise SourceMismatch(f"{right.path} was captured from another model than {left.path}")
