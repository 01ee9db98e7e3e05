"""States of texts at chosen places: the rows of a dataset joined to the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probing.data.prompts import Columns, prompts_from_rows
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME, Stream
from probing.engine.trees import Segment
from probing.errors import DataInvalid, NotFinite, UsageError
from probing.instruments.problems import warn_of
from probing.instruments.reading import (
    Advance,
    NonFiniteExplainer,
    check_max_length,
    check_unique,
    list_rows,
    open_stream,
    read_blocks,
    report_tokens,
    set_up,
    split_runnable,
)
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.load import DTYPES, LanguageModel
from probing.report.progress import Progress
from probing.tokens.prompts import TokenizedPrompt, tokenize_prompts
from probing.types import Activations, Capture, LabelledPrompt, Place, Problem, TokenActivations

BLOCK_ROWS = 1024
"""Rows that are tokenised, sorted and run together."""
INNER = ("attn_out", "mlp_out")


@dataclass(frozen=True)
class CapturedBlock:
    """States of some rows.

    Attributes:
        values: one tensor a place, [row width] of the rows that are ok (or [token width] of their tokens).
        counts: number of tokens that counted, for each row that is ok.
        tokenized: every row, in order.
        problems: problems of the rows that are not ok, by id.
        tokens: number of tokens that were run.
    """

    values: list[Tensor]
    counts: Tensor
    tokenized: list[TokenizedPrompt]
    problems: dict[str, Problem]
    tokens: int


@dataclass
class Capturer:
    """Captures block after block with one model.

    Args:
        language_model: the model and its tokenizer.
        request: places, pooling and tokens to read.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence; by default what the model has positions for.
        batch_tokens: tokens a batch; found by itself when None.
        compile: whether blocks are compiled by ``torch.compile``.

    Raises:
        UsageError: a length or a budget out of range, or places inside of compiled blocks.
        LayerNotFound: a place that the model does not have.
    """

    language_model: LanguageModel
    request: Capture
    eos: bool = True
    max_length: int | None = None
    batch_tokens: int | None = None
    compile: bool = False
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.limit = check_max_length(self.max_length, self.language_model.max_positions)
        if self.compile and any(place.kind in INNER for place in self.request.places):
            raise UsageError(f"{' and '.join(INNER)} lie inside of blocks, where nothing can be read once compiled")
        with set_up(self.language_model):
            stack = find_stack(self.language_model)
            sites = stack.sites(self.request.places)
            self.places: tuple[Place, ...] = tuple(site.place for site in sites)
            if len(set(self.places)) < len(self.places):
                raise UsageError(f"a place is named twice: {', '.join(map(str, self.request.places))}")
            kept = {"dtype": self.dtype, "compiled": self.compile}
            self.stream = open_stream(stack, sites, (self.request.pooling,), self.batch_tokens, **kept)
        self._explainer = NonFiniteExplainer(self.stream)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        if self.request.dtype != "auto":
            return DTYPES[self.request.dtype]
        pooled = self.request.pooling in ("mean", "sum")
        return torch.promote_types(self.language_model.dtype, torch.float32) if pooled else self.language_model.dtype

    def tokenize(
        self, prompts: Sequence[LabelledPrompt], where: Callable[[int], str] | None = None
    ) -> list[TokenizedPrompt]:
        """Rows as this model sees them."""
        tokenizer = self.language_model.tokenizer
        return tokenize_prompts(tokenizer, prompts, self.request, eos=self.eos, max_length=self.limit, where=where)

    def read(self, tokenized: list[TokenizedPrompt], report: Advance | None = None) -> CapturedBlock:
        """Capture some rows.

        Args:
            tokenized: the rows as ``tokenize`` returned them.
            report: see ``Advance``.
        """
        rows, problems = split_runnable(tokenized, report)
        if not rows:
            empty = [torch.empty((0, self.stream.stack.width), dtype=self.dtype) for _ in self.places]
            return CapturedBlock(empty, torch.empty(0, dtype=torch.long), tokenized, problems, 0)
        segments = [Segment(row.ids, row.start, row.stop, row.prompt_tokens) for row in rows]
        tokens = sum(segment.stop for segment in segments)
        with set_up(self.language_model):
            readings = self.stream.read(segments, report_tokens(report, len(rows), tokens))
        values, counts = self._keep_finite(rows, readings.values[self.request.pooling], readings.counts, problems)
        return CapturedBlock(values, counts, tokenized, problems, tokens)

    def _keep_finite(
        self, rows: Sequence[TokenizedPrompt], values: list[Tensor], counts: Tensor, problems: dict[str, Problem]
    ) -> tuple[list[Tensor], Tensor]:
        """Only rows whose states are finite at every place; the others become problems."""
        good = torch.stack([torch.isfinite(value).all(dim=1) for value in values]).all(dim=0)
        if good.all():
            return values, counts
        if self.request.pooling == "tokens":
            owner = torch.arange(len(rows)).repeat_interleave(counts)
            fine = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, owner[~good].unique(), False)
            good = fine[owner]
        else:
            fine = good
        for index in (~fine).nonzero()[:, 0].tolist():
            row = rows[index]
            segment = Segment(row.ids, row.start, row.stop)
            detail = self._explainer.explain([segment], otherwise="too large for the dtype asked for")
            problems[row.id] = Problem(row.id, "not_finite", detail)
        return [value[good] for value in values], counts[fine]


def capture(
    model: Any,
    texts: Any,
    request: Capture,
    batch_tokens: int | None = None,
    *,
    eos: bool = True,
    max_length: int | None = None,
    compile: bool = False,
) -> Activations | TokenActivations:
    """Read states of texts at chosen places.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer: see ``as_language_model``.
        texts: strings (their ids are "0", "1", ...), ``LabelledPrompt`` objects, mappings with the columns that
            ``probing capture`` reads, a ``datasets.Dataset`` or a ``pandas.DataFrame``.
        request: places, pooling, and which tokens count.
        batch_tokens: tokens a batch; found by itself when None. The numbers do not depend on it.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence in tokens; longer rows are left out and listed.
        compile: compile the model's blocks with ``torch.compile``; worth it for many rows on a card.

    Returns:
        ``Activations`` with ``.values`` [row place width], or ``TokenActivations`` with ``.values`` [token place width]
        and ``.offsets`` for ``pooling="tokens"``. Rows that could not be read (empty, too long, span not found, states
        not finite) are not among them, but in ``.problems``, and in a warning.

    Raises:
        LayerNotFound: a place that the model does not have; lists those it has.
        DataInvalid, NotFinite: not one row could be read.
        UsageError: options out of range.
        TypeError: a model without its tokenizer.
    """
    language_model, prompts = as_language_model(model), as_prompts(texts)
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        capturer = Capturer(language_model, request, eos, max_length, batch_tokens, compile)
        bar = Progress(len(prompts), unit="rows", doing="capturing")
        blocks = read_blocks(prompts, BLOCK_ROWS, capturer.tokenize, capturer.read, bar)
    problems = {identity: problem for block in blocks for identity, problem in block.problems.items()}
    if len(problems) == len(prompts):
        first = next(iter(problems.values()))
        everywhere = all(problem.status == "not_finite" for problem in problems.values())
        raise (NotFinite if everywhere else DataInvalid)(
            f"no row could be read; the first is row '{first.id}': {first.status}, {first.detail}"
        )
    ids = tuple(prompt.id for prompt in prompts if prompt.id not in problems)
    values = torch.stack([torch.cat(parts) for parts in zip(*(block.values for block in blocks), strict=True)], dim=1)
    listed = tuple(problems[prompt.id] for prompt in prompts if prompt.id in problems)
    warn_of(listed, len(prompts))
    if request.pooling != "tokens":
        return Activations(values, ids, capturer.places, language_model.source, listed)
    offsets = torch.nn.functional.pad(torch.cat([block.counts for block in blocks]).cumsum(0), (1, 0))
    return TokenActivations(values, offsets, ids, capturer.places, language_model.source, listed)


def as_prompts(texts: Any) -> list[LabelledPrompt]:
    """Rows from whatever a caller holds them in; see ``capture``.

    Raises:
        DataInvalid: no rows, a duplicate id, or a row that is not a text.
    """
    if isinstance(texts, str | LabelledPrompt | Mapping):
        raise UsageError(f"give a list of texts (or one split of a dataset), not a single {type(texts).__name__}")
    rows = list_rows(texts)
    if not rows:
        raise DataInvalid("there are no texts to read")
    if all(isinstance(row, Mapping) for row in rows):
        return prompts_from_rows(rows, Columns(span="span" if any("span" in row for row in rows) else None))
    prompts = [_as_prompt(index, row) for index, row in enumerate(rows)]
    check_unique([prompt.id for prompt in prompts], "row")
    return prompts


def _as_prompt(index: int, row: Any) -> LabelledPrompt:
    if isinstance(row, LabelledPrompt):
        return row
    if isinstance(row, str):
        return LabelledPrompt(str(index), row)
    raise DataInvalid(
        f"row {index}: texts must be strings, LabelledPrompt objects or mappings throughout; "
        f"found {type(row).__name__} ({row!r:.40})"
    )
