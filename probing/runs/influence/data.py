"""The pairs of a training, and the rows of the target."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from probing.data.columns import ColumnResolver, column_values
from probing.data.pairs import leave_out_ties, pairs_from_table
from probing.data.portions import Part
from probing.data.prompts import TEXT_COLUMNS, Columns, prompts_from_table
from probing.data.tables import Table, canonical
from probing.errors import DataInvalid
from probing.runs.common.datasets import read_each, read_pairs
from probing.runs.influence.config import InfluenceConfig
from probing.types import LabelledPrompt, PreferencePair, Text, message_text

OF_PAIRS = ("chosen", "margin")
"""Quantities of a target that is made of preference pairs."""
HARMFUL = "harmful"


@dataclass(frozen=True)
class TargetRows:
    """The rows of a target: pairs, or prompts with responses.

    Attributes:
        table: where they come from.
        pairs: preference pairs, for "chosen" and "margin".
        prompts: prompts with responses, for "response" and "refusal".
    """

    table: Table
    pairs: Sequence[PreferencePair] = ()
    prompts: Sequence[LabelledPrompt] = ()

    @property
    def texts(self) -> list[Text]:
        """The prompt of every row."""
        return [pair.prompt for pair in self.pairs] + [prompt.text for prompt in self.prompts]


@dataclass(frozen=True)
class Inputs:
    """What a run reads besides its model.

    Attributes:
        table: the dataset as a table.
        pairs: its pairs.
        target: rows of the target; None where there is none.
        groups: value of each pair by which the summary is grouped; None where it is not grouped.
        notes: what should be said of target and data together.
    """

    table: Table
    pairs: Sequence[PreferencePair]
    target: TargetRows | None = None
    groups: Sequence[object] | None = None
    notes: Sequence[str] = field(default_factory=list)


def read_inputs(config: InfluenceConfig) -> Inputs:
    """Read the dataset, its column of groups, and the target.

    Raises:
        DataInvalid, UsageError: a file or a column that is named is not what it should be, or the target is empty.
    """
    table, pairs = read_pairs(config)
    groups = column_values(table, config.group_column) if config.group_column else None
    target = None if config.target is None else read_target(config, config.target)
    notes = [] if target is None else _note_overlap(table, pairs, target)
    return Inputs(table, pairs, target, groups, notes)


def read_target(config: InfluenceConfig, source: str) -> TargetRows:
    """The rows of the target.

    Raises:
        DataInvalid: there are none, or none of the kind that the quantity is of.
    """
    kind = "pairs" if config.quantity in OF_PAIRS else "prompts"
    table = read_each([source], Part(config.target_split), "pairs" if kind == "pairs" else "prompts")[0]
    if kind == "pairs":
        table = leave_out_ties(table, config.pair_columns)
        rows = TargetRows(table, pairs=pairs_from_table(table, None, config.pair_columns))
    elif config.quantity == "response":
        rows = TargetRows(table, prompts=_read_responses(table))
    else:
        rows = TargetRows(table, prompts=_read_refused(table, config.refusal_text))
    if not rows.texts:
        raise DataInvalid(f"{table.path}: the target has no rows, so there is nothing to measure an influence on")
    return rows


def _read_prompts(table: Table) -> list[LabelledPrompt]:
    """The rows as prompts.

    Raises:
        DataInvalid: they are preference pairs, both responses of which would be counted, or there are no prompts.
    """
    resolver = ColumnResolver.of(table.rows, table.path)
    if {"chosen", "rejected"} <= set(resolver.present):
        raise DataInvalid(
            f"{table.path}: holds preference pairs, which --quantity chosen and margin are of; response and refusal "
            f"are of rows without 'chosen' and 'rejected'"
        )
    if resolver.find(None, TEXT_COLUMNS) is None:
        raise DataInvalid(
            f"{table.path}: there is no column of prompts ({', '.join(TEXT_COLUMNS)}); rename one of its columns "
            f"{resolver.listing}"
        )
    return prompts_from_table(table, Columns())


def _read_responses(table: Table) -> list[LabelledPrompt]:
    """Rows with their responses."""
    prompts = _read_prompts(table)
    without = next((at for at, prompt in enumerate(prompts) if prompt.response is None), None)
    if without is not None:
        raise DataInvalid(
            f"{table.where(without)} (id '{prompts[without].id}'): has no response, of which --quantity response is; "
            f"its column is named response or completion"
        )
    return prompts


def _read_refused(table: Table, text: str) -> list[LabelledPrompt]:
    """Prompts with the beginning of a refusal as their response: of labelled ones those labelled harmful."""
    prompts = _read_prompts(table)
    if any(prompt.label is not None for prompt in prompts):
        prompts = [prompt for prompt in prompts if prompt.label == HARMFUL]
        if not prompts:
            raise DataInvalid(
                f"{table.path}: the prompts have labels, and none is labelled '{HARMFUL}'; --quantity refusal is of "
                f"those, or of prompts without labels"
            )
    return [_answer(prompt, text) for prompt in prompts]


def _answer(prompt: LabelledPrompt, text: str) -> LabelledPrompt:
    return LabelledPrompt(
        prompt.id,
        prompt.text,
        response=text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}],
        tools=prompt.tools,
        chat_template_kwargs=prompt.chat_template_kwargs,
    )


def _note_overlap(table: Table, pairs: Sequence[PreferencePair], target: TargetRows) -> list[str]:
    if target.table.sha256 == table.sha256:
        return ["The target is the training data themselves: influences say what helps these very rows, no others"]
    known = {_key(pair.prompt) for pair in pairs}
    common = sum(_key(text) in known for text in target.texts)
    if not common:
        return []
    return [f"{common:,} of {len(target.texts):,} prompts of the target are prompts of the training data, too"]


def _key(text: Text) -> bytes:
    """A prompt, the same for a plain text and for one message of a user that says it."""
    single = not isinstance(text, str) and len(text) == 1 and text[0].get("role") == "user"
    return canonical(message_text(text[0]) if single else text)  # type: ignore[arg-type]
