"""Harmful and harmless prompts of a dataset, and which of them are held out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.data.portions import SAMPLE_SEED
from probing.data.prompts import Columns, label_name, prompts_from_table
from probing.data.tables import Table
from probing.errors import DataInvalid
from probing.runs.common.datasets import read_labelled_sources
from probing.runs.common.groups import refuse_twin_labels, text_units
from probing.runs.refusal.common.options import LEAST, KindPromptOptions
from probing.types import LabelledPrompt

PROMPTS_FILE = "prompts.parquet"
"""Where the extraction lists every prompt, and which were held out."""


@dataclass(frozen=True)
class Kinds:
    """The prompts of both kinds, in the order of the data.

    Attributes:
        table: dataset that they come from.
        prompts: harmful and harmless prompts.
        harmful: whether each is harmful.
        others: number of rows with other labels, or none.
        rows: numbers of the rows of the table that they come from; None where a row is no prompt, but a pair.
    """

    table: Table
    prompts: list[LabelledPrompt]
    harmful: list[bool]
    others: int
    rows: list[int] | None = None


def read_kinds(config: KindPromptOptions) -> Kinds:
    """The harmful and harmless prompts that the options name.

    Raises:
        DataInvalid: no row has a label, or too few have one of the two.
    """
    table = read_labelled_sources(config, config.sources, config.part)
    columns = Columns(
        id=config.id_column, text=config.text_column, label=config.label_column, category=config.category_column
    )
    prompts = prompts_from_table(table, columns)
    refuse_twin_labels(table.path, prompts)
    wanted = {config.harmful_label: True, config.harmless_label: False}
    kinds = [None if prompt.label is None else wanted.get(label_name(prompt)) for prompt in prompts]
    for label, kind in wanted.items():
        if kinds.count(kind) < LEAST:
            known = sorted({label_name(prompt) for prompt in prompts if prompt.label is not None})
            shown = ", ".join(known[:10]) or "none; give two files as --data harmful=FILE --data harmless=FILE"
            raise DataInvalid(
                f"{table.path}: {kinds.count(kind)} rows have the label '{label}', and at least {LEAST} are needed; "
                f"the labels are {shown}"
            )
    drawn = draw_of_each_kind(kinds, config.per_kind)
    return Kinds(
        table,
        [prompts[row] for row in drawn],
        [kinds[row] is True for row in drawn],
        kinds.count(None),
        drawn if len(prompts) == len(table.rows) else None,
    )


def draw_of_each_kind(kinds: Sequence[bool | None], count: int | None) -> list[int]:
    """The rows of both kinds; of a kind that has more than ``count`` so many at random, always the same ones.

    Args:
        kinds: kind of each row; None where it has neither label.
        count: number of rows of each kind; None for all.

    Returns:
        Numbers of the rows, ascending.
    """
    drawn: list[int] = []
    for kind in (True, False):
        rows = [row for row, own in enumerate(kinds) if own is kind]
        if count is not None and count < len(rows):
            rows = random.Random(SAMPLE_SEED).sample(rows, count)
        drawn += rows
    return sorted(drawn)


def hold_out(kinds: Kinds, share: float, seed: int) -> list[bool]:
    """Which prompts are held out: of each kind this share, texts that occur twice together.

    Args:
        kinds: the prompts.
        share: share of each kind, above 0; at least two of each kind are held out, and two are not.
        seed: seed of the draw.
    """
    units = text_units(kinds.prompts)
    generator = np.random.default_rng([seed, 7])
    out: set[int] = set()
    for kind in (True, False):
        own = sorted({unit for unit, harmful in zip(units, kinds.harmful, strict=True) if harmful is kind})
        count = min(max(round(share * len(own)), 2), len(own) - 2)
        out |= set(generator.permutation(own)[: max(count, 0)].tolist())
    return [unit in out for unit in units]


def split_kinds(prompts: Sequence[LabelledPrompt], harmful: Sequence[bool]) -> tuple[list[LabelledPrompt], ...]:
    """The harmful prompts, and the harmless ones."""
    return tuple(
        [prompt for prompt, own in zip(prompts, harmful, strict=True) if own is kind] for kind in (True, False)
    )


def check_counts(
    harmful: NDArray[np.bool_], held_out: NDArray[np.bool_], least: int, purpose: str, what: str, hint: str = ""
) -> None:
    """Raise unless there are enough prompts of each kind on either side.

    Args:
        harmful: whether each prompt is harmful.
        held_out: whether each is held out.
        least: number of prompts that are needed.
        purpose: of the prompts that are not held out, for the message.
        what: what the prompts have in common, for the message.
        hint: end of the message.

    Raises:
        DataInvalid: there are too few; says of which.
    """
    for kind, name in ((True, "harmful"), (False, "harmless")):
        for side, said in ((False, purpose), (True, "held out")):
            count = int(((harmful == kind) & (held_out == side)).sum())
            if count < least:
                raise DataInvalid(f"{count} {name} prompts {said} {what}, and {least} are needed{hint}")
