"""The exact first-order changes of both responses' likelihoods: by gradients of the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import UsageError
from probing.instruments.parameter_gradients import want_gradients
from probing.models.adapters import active_adapters, adds_to_weights, merged_copy
from probing.models.language_model import LanguageModel
from probing.models.layers import find_backbone
from probing.models.passes import accepts, logits_of, use_eval_mode
from probing.models.shares import refuse_shares
from probing.models.stack import Stack
from probing.tokens.pairs import TokenizedPair

PIECE = 1 << 22


class GradientProducts(NamedTuple):
    """Inner products of ``s_w`` and ``s_l``, the gradients of ``ln p(y+)`` and ``ln p(y-)`` of one pair.

    Attributes:
        chosen: ``<s_w, s_w>``.
        cross: ``<s_w, s_l>``.
        rejected: ``<s_l, s_l>``.
        difference: ``<s_w, s_w - s_l>``, from the difference of the gradients.
    """

    chosen: float
    cross: float
    rejected: float
    difference: float


@dataclass(eq=False)
class GradientRates:
    """Products of the gradients of ``ln p(y+)`` and ``ln p(y-)`` of one pair after the other.

    Args:
        stack: the model, from ``find_backbone``.
        parameters: over which the gradients are taken: "all", "head" (with tied embeddings: those), or "last:K": the
            last K blocks, the final norm and the head. Under an adapter they are the parameters of the model with the
            adapter merged into it.

    Raises:
        UsageError: no such parameters, weights that are offloaded, or an adapter that cannot be merged.
        ModelInvalid: the weights are split over processes.
    """

    stack: Stack
    parameters: str = "all"
    chosen: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.stack = _merge_adapters(self.stack)
        self.chosen = choose_parameters(self.stack, self.parameters)

    def rate(self, pair: TokenizedPair) -> float:
        """The change of ``ln p(y+)`` per unit of ``-l'``; two backward passes, gradients in the weights' dtype."""
        return self.products(pair).difference

    def products(self, pair: TokenizedPair) -> GradientProducts:
        """All products of both gradients, by two backward passes, with sums in float64."""
        plus, minus = self.gradients(pair)
        parts = [_multiply(a, b) for a, b in zip(plus, minus, strict=True)]
        return GradientProducts(*(sum(terms) for terms in zip(*parts, strict=True)))

    def gradients(self, pair: TokenizedPair) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of ``ln p(y+)`` and of ``ln p(y-)``, over the chosen parameters."""
        model = self.stack.language_model.model
        with (
            ONE_AT_A_TIME,
            use_eval_mode(model),
            want_gradients(model, self.chosen),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(self.stack.language_model.device.type, enabled=False),
        ):
            return (
                self._gradient(pair.chosen, pair.prompt_tokens),
                self._gradient(pair.rejected, pair.prompt_tokens),
            )

    def _gradient(self, ids: Sequence[int], prompt_tokens: int) -> list[Tensor]:
        logprob = response_logprob(self.stack, ids, prompt_tokens)
        gradients = torch.autograd.grad(logprob, self.chosen, allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.chosen, gradients, strict=True)
        ]


def _merge_adapters(stack: Stack) -> Stack:
    """The same model with its adapters merged into it, where gradients of its weights would not be those of the merged.

    What LoRA adds to a weight leaves the gradient of that weight as it is; a factor or a rotation does not.
    """
    model = stack.language_model
    if model.peft is None or adds_to_weights(model.peft):
        return stack
    try:
        merged = merged_copy(model.peft)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        kinds = ", ".join(
            sorted({model.peft.peft_config[name].peft_type.value for name in active_adapters(model.peft)})
        )
        raise UsageError(f"exact rates need an adapter that can be merged, and {kinds} cannot ({error})") from error
    return find_backbone(LanguageModel(merged, model.tokenizer, model.source))


def response_logprob(stack: Stack, ids: Sequence[int], prompt_tokens: int) -> Tensor:
    """ln p of a response as the model itself computes it, differentiable; logits of the response only."""
    model, count = stack.language_model.model, len(ids) - prompt_tokens
    device = stack.language_model.device
    rows = torch.tensor([ids[:-1]], device=device)
    options = {"logits_to_keep": count} if accepts(model, "logits_to_keep") else {}
    logits = logits_of(model, rows, **options)[0, -count:]
    exact = torch.promote_types(logits.dtype, torch.float32)
    targets = torch.tensor(ids[prompt_tokens:], device=logits.device)
    return logits.to(exact).log_softmax(dim=-1).gather(1, targets[:, None]).sum()


def choose_parameters(stack: Stack, which: str) -> list[nn.Parameter]:
    """The parameters of a model that ``which`` names; see ``GradientRates``."""
    model = stack.language_model.model
    refuse_shares(model, "exact rates and influences need gradients of whole weights")
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UsageError(
            "exact rates need every weight on a device, and some are offloaded to the memory of the host; use more or "
            "larger cards, or --device cpu"
        )
    head = list(model.get_output_embeddings().parameters())
    if which == "all":
        # An adapter's own parameters are left out, so that those of the merged model remain.
        peft = stack.language_model.peft
        own = () if peft is None else (peft.base_model.prefix, "original_module")
        chosen = [p for name, p in model.named_parameters() if not any(part in name for part in own)]
    elif which == "head":
        chosen = head
    else:
        name, _, count = which.partition(":")
        if name != "last" or not count.isdigit() or not 1 <= int(count) <= len(stack.blocks):
            raise UsageError(
                f"'{which}' names no parameters: there are all, head and last:1 to last:{len(stack.blocks)}"
            )
        chosen = [parameter for block in stack.blocks[-int(count) :] for parameter in block.parameters()]
        chosen += list(stack.final_norm.parameters()) if stack.final_norm is not None else []
        chosen += head
    unique = {id(parameter): parameter for parameter in chosen if parameter.is_floating_point()}
    return list(unique.values())


def _multiply(plus: Tensor, minus: Tensor) -> list[float]:
    """The products of two gradients in float64, a piece at a time: gradients are as large as the model."""
    totals = [0.0] * len(GradientProducts._fields)
    for pieces in zip(plus.flatten().split(PIECE), minus.flatten().split(PIECE), strict=True):
        a, b = (piece.double() for piece in pieces)
        terms = [float(a @ a), float(a @ b), float(b @ b), float((a * (a - b)).sum())]
        totals = [total + term for total, term in zip(totals, terms, strict=True)]
    return totals
