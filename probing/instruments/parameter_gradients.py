"""Gradients of weighted sums of responses' log-probabilities over chosen parameters: in batches, none kept per row."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import OutOfMemory, UsageError
from probing.kernels.output_head import is_out_of_memory
from probing.models.passes import accepts, logits_of, use_eval_mode
from probing.models.stack import Stack

log = logging.getLogger(__name__)

Weigh = Callable[[Sequence[int], Tensor], Tensor]
"""Weights of rows, [row], from the numbers of the groups that are run together and ln p of their rows."""
MOST_TOKENS = 4096
LOGIT_BYTES = {"cpu": 1 << 30, "cuda": 1 << 33}
"""Bytes of the logits of one batch, with their softmax and its gradient."""
COPIES = 3
PADDING_CHANGES = 1e-4
"""Largest difference, relative, between ln p of a row in a padded batch and alone."""


@dataclass(frozen=True)
class PromptedRow:
    """A sequence of tokens of which those after the prompt count.

    Attributes:
        ids: ids of prompt and response.
        prompt_tokens: number of tokens of the prompt, at least 1.
    """

    ids: Sequence[int]
    prompt_tokens: int


Group = Sequence[PromptedRow]
"""Rows whose weights depend on one another, such as both responses of a pair; they are run together."""


@dataclass(eq=False)
class ParameterGradients:
    """Sums of weighted gradients of ``ln p`` of responses over some parameters of a model.

    Rows are padded on the right, which causal models do not see; where one does, rows are run alone, with a warning.

    Attributes:
        stack: the model, from ``find_backbone``.
        parameters: over which gradients are taken.
        batch_tokens: padded tokens a batch; by default what the logits of a batch allow.
        how: every slower way that was taken, in words.
    """

    stack: Stack
    parameters: Sequence[nn.Parameter]
    batch_tokens: int | None = None
    how: list[str] = field(default_factory=list)
    _alone: bool = False
    _compared: bool = False

    def __post_init__(self) -> None:
        if self.batch_tokens is None:
            vocabulary = self.stack.language_model.model.get_input_embeddings().weight.shape[0]
            room = LOGIT_BYTES.get(self.stack.language_model.device.type, LOGIT_BYTES["cpu"])
            self.batch_tokens = max(1, min(MOST_TOKENS, room // (4 * COPIES * vocabulary)))

    def zeros(self) -> list[Tensor]:
        """A tensor of zeros for each parameter, to add gradients to."""
        return [torch.zeros_like(parameter) for parameter in self.parameters]

    def add(
        self,
        groups: Sequence[Group],
        weigh: Weigh,
        into: Sequence[Tensor],
        report: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Add ``sum over rows of weight * grad ln p`` to tensors, one a parameter.

        Args:
            groups: the rows, each with at least one token after the prompt.
            weigh: weight of each row; called for every batch.
            into: tensors of the parameters' shapes.
            report: called with the number of groups that were done, after each batch.

        Returns:
            ln p of the rows of each group, on the CPU, in float64.

        Raises:
            OutOfMemory: one group alone does not fit.
        """
        with self._differentiable():
            return self._run_all(groups, lambda some: self._add_batch(groups, some, weigh, into), report)

    def read(self, groups: Sequence[Group]) -> list[Tensor]:
        """ln p of the rows of each group, on the CPU, in float64, as ``add`` sees them; no gradient is taken."""
        with self._differentiable(), torch.no_grad():
            return self._run_all(groups, lambda some: self._run([row for at in some for row in groups[at]]))

    def _run_all(
        self,
        groups: Sequence[Group],
        run: Callable[[Sequence[int]], Tensor | None],
        report: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """ln p of the rows of each group, from batches of groups, longest first.

        Args:
            groups: the rows.
            run: ln p of the rows of some groups; None where they are to be cut otherwise.
            report: called with the number of groups that were done, after each batch.
        """
        said: list[Tensor] = [torch.empty(0)] * len(groups)
        left = sorted(range(len(groups)), key=lambda at: -_longest(groups[at]))
        while left:
            some = left[: self._count_fitting([groups[at] for at in left])]
            try:
                logprobs = run(some)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve([row for at in some for row in groups[at]], len(some))
                continue
            if logprobs is None:
                continue
            left = left[len(some) :]
            parts = logprobs.double().cpu().split([len(groups[at]) for at in some])
            for at, values in zip(some, parts, strict=True):
                said[at] = values
            if report is not None:
                report(len(some))
        return said

    def logprobs(self, rows: Sequence[PromptedRow]) -> Float[Tensor, " row"]:
        """ln p of the response of each row as the model itself computes it, differentiable, in one padded batch."""
        model, device = self.stack.language_model.model, self.stack.language_model.device
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(device)
        # Logits are made at the positions that predict a token of some response, and at no others.
        needed = torch.zeros(ids.shape[1], dtype=torch.bool)
        for row in rows:
            needed[row.prompt_tokens - 1 : len(row.ids) - 1] = True
        positions = needed.nonzero()[:, 0]
        options = {"logits_to_keep": positions.to(device)} if accepts(model, "logits_to_keep") else {}
        logits = logits_of(model, ids[:, :-1], **options)
        if not options:
            logits = logits[:, positions.to(logits.device)]
        return _sum_logprobs(logits, ids.to(logits.device), positions, rows)

    def _count_fitting(self, groups: Sequence[Group]) -> int:
        """The number of groups, from the first, which is the longest, that make one batch."""
        assert self.batch_tokens is not None
        count, rows = 1, len(groups[0])
        for group in () if self._alone else groups[1:]:
            rows += len(group)
            if rows * _longest(groups[0]) > self.batch_tokens:
                break
            count += 1
        return count

    def _add_batch(
        self, groups: Sequence[Group], some: Sequence[int], weigh: Weigh, into: Sequence[Tensor]
    ) -> Tensor | None:
        """Add the gradients of some groups, and return ln p of their rows; None if they are to be cut otherwise."""
        logprobs = self._run([row for at in some for row in groups[at]])
        if logprobs is None:
            return None
        weights = weigh(some, logprobs.detach().double()).to(logprobs)
        gradients = torch.autograd.grad((logprobs * weights).sum(), list(self.parameters), allow_unused=True)
        for total, gradient in zip(into, gradients, strict=True):
            if gradient is not None:
                total += gradient
        # Without the graph, which would be held until the next batch is done.
        return logprobs.detach()

    def _run(self, rows: Sequence[PromptedRow]) -> Tensor | None:
        """``logprobs`` of all rows together, or one after the other; None if it turns out that they have to be."""
        if self._alone:
            return torch.cat([self.logprobs([row]) for row in rows])
        logprobs = self.logprobs(rows)
        if self._compared or len({len(row.ids) for row in rows}) == 1:
            return logprobs
        at = min(range(len(rows)), key=lambda index: len(rows[index].ids))
        with torch.no_grad():
            alone = self.logprobs([rows[at]])[0]
        self._compared = True
        if bool((logprobs[at] - alone).abs() <= PADDING_CHANGES * alone.abs().clamp_min(1.0)):
            return logprobs
        self._alone = True
        self.how.append("gradients run a sequence at a time, since padding changes what the model computes")
        log.warning("%s: %s", self.stack.family, self.how[-1])
        return None

    def _halve(self, rows: Sequence[PromptedRow], groups: int) -> None:
        """Have fewer tokens in a batch after memory ran out.

        Raises:
            OutOfMemory: the batch was one group.
        """
        assert self.batch_tokens is not None
        if groups == 1:
            raise OutOfMemory(
                f"the gradients of {len(rows)} sequences of up to {max(len(row.ids) for row in rows)} tokens do not "
                f"fit in memory together with the model; choose fewer parameters, or more parts of them "
                f"(parameter_parts), or a smaller max_length"
            )
        self.batch_tokens = max(1, min(self.batch_tokens, len(rows) * max(len(row.ids) for row in rows)) // 2)
        log.warning("memory ran out; gradients are taken of %d tokens at a time from now on", self.batch_tokens)

    @contextlib.contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Run the model in eval mode, with gradients of the chosen parameters and no others."""
        language_model = self.stack.language_model
        with (
            ONE_AT_A_TIME,
            use_eval_mode(language_model.model),
            want_gradients(language_model.model, self.parameters),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(language_model.device.type, enabled=False),
        ):
            yield


def _longest(group: Group) -> int:
    return max(len(row.ids) for row in group)


def _sum_logprobs(logits: Tensor, ids: Tensor, positions: Tensor, rows: Sequence[PromptedRow]) -> Tensor:
    """ln p of each row's response.

    Args:
        logits: [row position vocabulary].
        ids: right-padded, [row token].
        positions: of the logits, ascending, on the CPU, [position].
        rows: the rows.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    following = ids[:, (positions + 1).to(ids.device)]
    tokens = logits.to(exact).log_softmax(dim=-1).gather(2, following[:, :, None])[:, :, 0]
    starts, stops = (
        torch.tensor(edges)[:, None]
        for edges in ([row.prompt_tokens - 1 for row in rows], [len(row.ids) - 1 for row in rows])
    )
    inside = (positions >= starts) & (positions < stops)
    # Multiplied by 0, a NaN of the padding would remain.
    return torch.where(inside.to(tokens.device), tokens, 0).sum(dim=1)


@contextlib.contextmanager
def want_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Have gradients computed for these parameters and no others, inside the block.

    Raises:
        UsageError: the parameters were made in inference mode, so that no gradient can be taken by them.
    """
    if any(parameter.is_inference() for parameter in parameters):
        raise UsageError(
            "the model's weights were made under torch.inference_mode(), so that no gradient can be taken by them; "
            "load or copy the model outside of it"
        )
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in before:
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            if parameter.is_floating_point():
                parameter.requires_grad_(required)
