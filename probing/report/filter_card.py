"""The card of a filtered dataset: where it comes from, what was removed and why, and what that does not promise."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.report.card import CARD_FILE, read_front_matter, write_block, write_code, write_front_matter, write_table
from probing.report.layout import shorten
from probing.report.tables import to_line
from probing.shown import count_of, to_message
from probing.types import PreferencePair

if TYPE_CHECKING:
    import pandas as pd

PLOTS_FILE = "plots.html"
DEFAULT, DROPPED = "default", "dropped"
"""Names of the configurations of the kept and of the dropped rows."""
TAG = "model-probing-filter"
"""Tells the card of a dataset that a filter wrote from all others."""
TAGS = ["preference", "model-probing", TAG]
PROMPT_WIDTH, RESPONSE_WIDTH, NAME_WIDTH, LINE_WIDTH = 300, 300, 200, 88
RULES_IN_WORDS = {
    "keep_lowest": "Of the pairs that have a score, the {share} with the lowest {by} are kept.",
    "drop_highest": "Of the pairs that have a score, the {share} with the highest {by} are dropped.",
    "below": "Pairs whose {by} is below {value} are kept.",
    "keep_highest": "Of the pairs that have a score, the {share} with the highest {by} are kept.",
    "drop_lowest": "Of the pairs that have a score, the {share} with the lowest {by} are dropped.",
    "above": "Pairs whose {by} is above {value} are kept.",
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows within the folder.

    Attributes:
        config: name of the configuration that it is.
        name: name of the file.
        split: name of its split.
        rows: number of its rows.
        sha256: hash of its bytes; None where it is a folder.
        reading: options with which the datasets library reads it.
    """

    config: str
    name: str
    split: str
    rows: int
    sha256: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FilterCard:
    """What the card of a filtered dataset tells. Texts may be of any origin.

    Attributes:
        folder: name of the folder.
        title: short name of the dataset that was filtered.
        source: the dataset as it was named.
        data: facts of that dataset, by what they are.
        models: facts of the models that made the score, by what they are; empty where no record tells them.
        by: column of the score.
        meaning: what a high score means, in a sentence.
        rule: name of the rule, and its value.
        threshold: value between kept and dropped pairs; None where nothing was dropped by the score.
        bad: what was done with pairs that have no score, and how many there are.
        counts: pairs by status, kept and dropped.
        spread: quantiles of the score of all, kept and dropped pairs.
        examples: by what they are, pairs with their scores.
        command: the command that made the dataset.
        versions: versions of the libraries, by name.
        date: the day, as YYYY-MM-DD.
    """

    folder: str
    title: str
    source: str
    data: Mapping[str, object]
    models: Mapping[str, Mapping[str, object]]
    by: str
    meaning: str
    rule: tuple[str, float]
    threshold: float | None
    bad: tuple[str, int]
    counts: "pd.DataFrame"
    spread: "pd.DataFrame"
    examples: Mapping[str, Sequence[tuple[PreferencePair, float]]]
    command: str
    versions: Mapping[str, str]
    date: str


def is_filtered_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset that a filter wrote, with its card, and nothing else."""
    card = folder / CARD_FILE
    if not card.is_file() or card.is_symlink():
        return False
    facts = read_front_matter(card)
    tags, configs = facts.get("tags"), facts.get("configs")
    if not isinstance(tags, list) or TAG not in tags or not isinstance(configs, list):
        return False
    try:
        names = {file["path"] for config in configs for file in config["data_files"]} | {CARD_FILE, PLOTS_FILE}
    except (TypeError, KeyError):
        return False
    return all(path.is_file() and not path.is_symlink() and path.name in names for path in folder.iterdir())


def write_filter_card(card: FilterCard, files: Sequence[DataFile], saved: bool) -> str:
    """The card as Markdown with YAML before it.

    Args:
        card: what it tells.
        files: the files of the rows that are kept and, if there are any, of those dropped.
        saved: whether the rows are datasets as ``save_to_disk`` writes them.
    """
    kept, dropped = (int(card.counts[name].sum()) for name in ("kept", "dropped"))
    lines = [
        f"# {write_code(card.title, NAME_WIDTH)}, filtered by {write_code(card.by)}",
        "",
        f"{count_of(kept + dropped, 'preference pair')}: {kept} kept, {dropped} dropped by `probing filter`. The rows "
        "that are kept are as they were, with all columns and in their order. The licence of the source applies.",
        "",
        "## How to load",
        "",
        *_tell_loading(card, files, saved),
        "",
        "## What was removed, and why",
        "",
        *_tell_rule(card),
        "",
        *write_table(card.counts),
        "",
        f"Quantiles of {write_code(card.by)}:",
        "",
        *write_table(card.spread),
        "",
        *_tell_examples(card),
        "## What the filter does not promise",
        "",
        *_tell_limits(card),
        "",
        "## Where it comes from",
        "",
        *_tell_sources(card),
        "",
    ]
    return write_front_matter(_list_facts(card, files, kept, saved)) + "\n" + "\n".join(lines)


def _list_facts(card: FilterCard, files: Sequence[DataFile], rows: int, saved: bool) -> dict[str, Any]:
    name = f"{to_message(card.title, NAME_WIDTH)}, filtered by {to_message(card.by, NAME_WIDTH)}"
    facts: dict[str, Any] = {"pretty_name": name, "size_categories": [_find_size(rows)], "tags": list(TAGS)}
    if not saved:
        facts["configs"] = [
            {"config_name": file.config, "data_files": [{"split": file.split, "path": file.name}], **file.reading}
            for file in files
        ]
    return facts


def _find_size(rows: int) -> str:
    """The name that the hub has for a number of rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"]
    return names[min(max(int(math.log10(max(rows, 1))) - 2, 0), len(names) - 1)]


def _tell_loading(card: FilterCard, files: Sequence[DataFile], saved: bool) -> list[str]:
    function = "load_from_disk" if saved else "load_dataset"
    lines = [f"from datasets import {function}", ""]
    for file in files:
        if saved:
            lines.append(f"{file.config if file.config == DROPPED else 'kept'} = load_from_disk({file.name!r})")
        else:
            name = "" if file.config == DEFAULT else f", {file.config!r}"
            variable = "kept" if file.config == DEFAULT else file.config
            lines.append(f"{variable} = load_dataset({card.folder!r}{name}, split={file.split!r})")
    files_told = [
        f"- {write_code(file.name)}: {count_of(file.rows, 'row')}"
        + (f", sha256 `{file.sha256}`" if file.sha256 else "")
        + ("; the columns `probing_*` hold status and scores of each" if file.config == DROPPED else "")
        for file in files
    ]
    return [*write_block(lines, "python"), "", *files_told]


def _tell_rule(card: FilterCard) -> list[str]:
    name, value = card.rule
    rule = RULES_IN_WORDS[name].format(share=f"{100 * value:g} %", value=f"{value:g}", by=write_code(card.by))
    said = [f"- {rule} {card.meaning}".rstrip()]
    if card.threshold is not None and name not in ("below", "above"):
        said.append(
            f"- This is a threshold of {card.threshold:.6g}, midway between the nearest kept and dropped scores."
        )
    how, count = card.bad
    if count:
        fate = "kept" if how == "keep" else "dropped"
        said.append(
            f"- {count_of(count, 'pair')} without a score {'is' if count == 1 else 'are'} {fate} (`--bad {how}`)."
        )
    return said


def _tell_examples(card: FilterCard) -> list[str]:
    """The texts of a few pairs, shortened, as blocks of code."""
    lines = []
    for title, pairs in card.examples.items():
        if pairs:
            lines += [f"### {title}", ""]
        for pair, score in pairs:
            texts = {
                "prompt": shorten(to_line(pair.prompt), PROMPT_WIDTH, end=True),
                "chosen": shorten(to_line(pair.chosen), RESPONSE_WIDTH),
                "rejected": shorten(to_line(pair.rejected), RESPONSE_WIDTH),
            }
            heading = f"{write_code(pair.id, NAME_WIDTH)}, {write_code(card.by)} {score:.4g}:"
            lines += [
                heading,
                "",
                *write_block([line for name, text in texts.items() for line in _wrap(name, text)]),
                "",
            ]
    return lines


def _wrap(name: str, text: str) -> list[str]:
    """A text beside its name, on lines that need no scrolling."""
    begin = f"{name + ':':<10}"
    return textwrap.wrap(text, LINE_WIDTH, initial_indent=begin, subsequent_indent=" " * 10) or [begin.rstrip()]


def _tell_limits(card: FilterCard) -> list[str]:
    return [
        "A score is a proxy. It was computed with the model (or models) named below, as the weights were then: another "
        "model, or the same one after some training, orders the pairs differently. The score says nothing about "
        "whether a pair is correct, harmless or well labelled, and no pair was removed for what it says. The threshold "
        "is a choice, and pairs just above and just below it are much alike. Whether a model that is trained on the "
        "kept pairs turns out better was not measured here. Dropping pairs also changes what a dataset is about: "
        "compare the dropped rows with the kept ones before you train."
    ]


def _tell_sources(card: FilterCard) -> list[str]:
    lines = [_tell_facts(f"Data: {write_code(card.source, NAME_WIDTH)}", card.data)]
    for kind, facts in card.models.items():
        name = write_code(facts.get("model", "?"), NAME_WIDTH)
        lines.append(_tell_facts(f"{kind.capitalize()}: {name}", {k: v for k, v in facts.items() if k != "model"}))
    if not card.models:
        lines.append("- Model: not known, since there was no record beside the scores.")
    versions = ", ".join(f"{to_message(name)} {write_code(version)}" for name, version in card.versions.items())
    lines += [f"- Versions: {versions}", f"- Date: {card.date}", "", "The command:", ""]
    return [*lines, *write_block([card.command], "sh")]


def _tell_facts(begin: str, facts: Mapping[str, object]) -> str:
    return "; ".join([f"- {begin}", *(f"{name} {write_code(value)}" for name, value in facts.items())])
