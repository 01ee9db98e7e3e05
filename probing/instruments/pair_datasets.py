"""A dataset of pairs and a model in, a dataset out: filtered by scores, or with log-probabilities as a reference."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from probing.data.filters import RULES, check_rule
from probing.data.pair_columns import PairColumns
from probing.errors import DataInvalid, UsageError
from probing.instruments.columns import COLUMNS, GROUPS, REF_LOGPS, known_columns
from probing.instruments.filtering import (
    NO_SCORES,
    SIDE_PREFIX,
    Bad,
    check_bad,
    check_kind,
    choose_kept,
    describe_bad_rows,
    take_rows,
    warn_of_direction,
)
from probing.instruments.pair_scores import BLOCK_PAIRS, as_pairs, score_pairs
from probing.instruments.reading import check_max_length
from probing.metrics.preference_losses import PreferenceLoss
from probing.models.in_memory import as_language_model
from probing.models.language_model import LanguageModel
from probing.tokens.pairs import tokenize_pairs
from probing.types import LossName, PreferencePair

ADVICE = "Say with the argument bad what becomes of them"


def filter_dataset(
    dataset: Any,
    model: Any,
    by: str = "ches_normalized",
    *,
    keep_lowest: float | None = None,
    drop_highest: float | None = None,
    below: float | None = None,
    keep_highest: float | None = None,
    drop_lowest: float | None = None,
    above: float | None = None,
    bad: Bad = "fail",
    return_dropped: bool = False,
    eos: bool = True,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    rate_parameters: str = "all",
    loss: PreferenceLoss | LossName = "margin",
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    system_column: str | None = None,
    implicit_prompt: bool = False,
) -> Any:
    """Score the pairs of a dataset and keep those that ``probing score`` and ``probing filter`` would keep.

    ``score_pairs`` and ``filter_pairs`` in one call. The model may be one that is being trained; it is left as it was.

    Args:
        dataset: a ``datasets.Dataset``, a ``pandas.DataFrame``, or a list of mappings or of ``PreferencePair``.
        model: a causal language model, in any form that ``score_pairs`` takes.
        by: score column. Of similarities keep the lowest: higher means more alike. Of rates keep the highest.
        keep_lowest: share of the scored pairs to keep. Give exactly one of the six rules.
        drop_highest: share of the scored pairs to drop.
        below: keep scores strictly below this.
        keep_highest: share of the scored pairs to keep.
        drop_lowest: share of the scored pairs to drop.
        above: keep scores strictly above this.
        bad: whether pairs without a score (identical, too long, ...) are kept, dropped, or refused. What the texts
            alone tell is refused before anything is scored.
        return_dropped: whether to return the dropped rows too.
        eos: whether the end of turn belongs to the response, as in training.
        max_length: longest sequence in tokens; longer pairs have no score.
        batch_tokens: tokens in a batch; by default as many as the memory of the device allows.
        rate_parameters: parameters over which the exact columns take gradients.
        loss: the loss whose training rates are about; see ``score_pairs``.
        prompt_column: column of the prompts, where the rows have another one than a known layout.
        chosen_column: column of the chosen responses.
        rejected_column: column of the rejected responses.
        system_column: column of the system prompts, with which every row is a conversation.
        implicit_prompt: whether the prompt of plain responses without one is what both begin with.

    Returns:
        The kept rows in their order, with all of their columns unchanged, as the same kind of thing as ``dataset``.
        With ``return_dropped`` these and the dropped rows, which have their scores in further columns:
        ``probing_status``, ``probing_ches_normalized``, and so on, NaN where there is no score.

    Raises:
        ValueError: no rule or several, an unknown column, or options out of range.
        TypeError: no such dataset, or a model without its tokenizer.
        DataInvalid: an invalid pair, or pairs without a score where ``bad`` is "fail".
    """
    given = (keep_lowest, drop_highest, below, keep_highest, drop_lowest, above)
    rule = dict(zip(RULES, given, strict=True))
    warn_of_direction(by, check_rule(**rule)[0])
    check_bad(bad)
    if by in (*NO_SCORES, "status", *GROUPS):
        raise UsageError(f"'{by}' is no score to filter by")
    columns = known_columns([*COLUMNS, by])
    if return_dropped:
        _check_new_columns(dataset, [f"{SIDE_PREFIX}{name}" for name in columns])
    pairs = _read(dataset, PairColumns(prompt_column, chosen_column, rejected_column, system_column, implicit_prompt))
    language_model = as_language_model(model)
    if bad == "fail":
        _refuse_bad_rows(pairs, language_model, eos, max_length)
    scores = score_pairs(
        language_model,
        pairs,
        columns,
        eos=eos,
        max_length=max_length,
        batch_tokens=batch_tokens,
        rate_parameters=rate_parameters,
        loss=loss,
    )
    keep = choose_kept(scores["id"].tolist(), scores, by, bad, rule)
    kept, dropped = ([at for at, known in enumerate(keep) if known == fate] for fate in (True, False))
    if not return_dropped:
        return take_rows(dataset, kept)
    return take_rows(dataset, kept), _add_columns(
        take_rows(dataset, dropped), scores.iloc[dropped].add_prefix(SIDE_PREFIX)
    )


def add_ref_logps(
    dataset: Any,
    model: Any,
    *,
    bad: Literal["fail", "drop"] = "fail",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    system_column: str | None = None,
    implicit_prompt: bool = False,
) -> Any:
    """Add ``ref_chosen_logps`` and ``ref_rejected_logps``, as TRL's DPOTrainer precomputes them.

    They are ln p of each response given its prompt, in nats, summed over the tokens of the response, its end of turn
    included. How a trainer takes them: ``docs/scores.md``.

    Args:
        dataset: a ``datasets.Dataset``, a ``pandas.DataFrame`` or a list of mappings.
        model: the reference model, in any form that ``score_pairs`` takes. Of a model under an adapter that is
            trained, give it with the adapter disabled.
        bad: whether rows that cannot be scored (see ``status`` in ``docs/scores.md``) are refused or left out: there is
            no number that a trainer could take for them.
        max_length: longest sequence in tokens. Give that of the DPOConfig (by default 1024): a trainer cuts longer
            sequences, so that its log-probabilities are others; here such rows are not scored.
        batch_tokens: tokens in a batch; by default as many as the memory of the device allows.
        prompt_column: column of the prompts, where the rows have another one than a known layout.
        chosen_column: column of the chosen responses.
        rejected_column: column of the rejected responses.
        system_column: column of the system prompts, with which every row is a conversation.
        implicit_prompt: whether the prompt of plain responses without one is what both begin with.

    Returns:
        The rows with all of their columns and these two, as the same kind of thing as ``dataset``.

    Raises:
        ValueError: the rows have one of the columns already, or an option is out of range.
        TypeError: no such dataset, or a model without its tokenizer.
        DataInvalid: an invalid pair, rows that cannot be scored where ``bad`` is "fail", or none that can.
    """
    if bad not in ("fail", "drop"):
        raise ValueError(f"bad must be fail or drop, not {bad!r}")
    _check_new_columns(dataset, REF_LOGPS)
    pairs = _read(dataset, PairColumns(prompt_column, chosen_column, rejected_column, system_column, implicit_prompt))
    language_model = as_language_model(model)
    if bad == "fail":
        _refuse_bad_rows(pairs, language_model, True, max_length)
    scores = score_pairs(
        language_model, pairs, list(REF_LOGPS.values()), max_length=max_length, batch_tokens=batch_tokens
    )
    good = (scores["status"] == "ok").to_numpy().nonzero()[0].tolist()
    if len(good) < len(pairs) and (bad == "fail" or not good):
        bad_rows = describe_bad_rows(scores["id"].tolist(), scores["status"].tolist())
        raise DataInvalid(f"{bad_rows}. {ADVICE}" if good else bad_rows)
    logps = scores.iloc[good].rename(columns={ours: theirs for theirs, ours in REF_LOGPS.items()})
    return _add_columns(take_rows(dataset, good), logps[list(REF_LOGPS)])


def _read(dataset: Any, columns: PairColumns) -> Sequence[PreferencePair]:
    """The pairs of a dataset, whatever format it answers in."""
    check_kind(dataset)
    return as_pairs(dataset.with_format(None) if hasattr(dataset, "with_format") else dataset, columns)


def _refuse_bad_rows(pairs: Sequence[PreferencePair], model: LanguageModel, eos: bool, max_length: int | None) -> None:
    """Raise ``DataInvalid`` before anything is run if the texts of a pair tell that it will have no score."""
    limit = check_max_length(max_length, model.max_positions)
    status = [
        row.status
        for start in range(0, len(pairs), BLOCK_PAIRS)
        for row in tokenize_pairs(model.tokenizer, pairs[start : start + BLOCK_PAIRS], eos=eos, max_length=limit)
    ]
    if set(status) != {"ok"}:
        raise DataInvalid(f"{describe_bad_rows([pair.id for pair in pairs], status)}. {ADVICE}")


def _check_new_columns(dataset: Any, names: Sequence[str] | Mapping[str, str]) -> None:
    """Raise unless these columns can be added: a row must be a mapping that does not have one of them.

    Raises:
        UsageError: there is such a column.
        TypeError: the rows are no mappings.
    """
    check_kind(dataset)
    known = getattr(dataset, "column_names", getattr(dataset, "columns", None))
    if known is None:
        strange = next((row for row in dataset if not isinstance(row, Mapping)), None)
        if strange is not None:
            raise TypeError(f"columns can be added to mappings, not to a {type(strange).__name__}")
        known = {name for row in dataset for name in row}
    there = [name for name in names if name in known]
    if there:
        raise UsageError(f"the rows have a column {' and '.join(there)} already; remove it first")


def _add_columns(rows: Any, columns: pd.DataFrame) -> Any:
    """The rows with further columns, as the same kind of thing."""
    values = {str(name): columns[name].tolist() for name in columns}
    if hasattr(rows, "iloc"):
        return rows.assign(**values)
    if not hasattr(rows, "add_column"):
        return [{**row, **{name: column[at] for name, column in values.items()}} for at, row in enumerate(rows)]
    for name, column in values.items():
        rows = rows.add_column(name, column)
    return rows
