"""How a model is run: packed or stacked, prompts shared or not; fast ways only where they prove right on this model."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probing.engine.attention import Layout, configs_of, use_packed_attention
from probing.engine.transfer import upload
from probing.engine.trees import Batch, Segment, pack_trees, plant, stack_rows
from probing.models.differences import allowed_difference, channelwise_difference
from probing.models.hooks import Tap, record_taps
from probing.models.load import LanguageModel
from probing.models.passes import accepts, run_backbone, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.stack import Stack
from probing.tokens.padding import padded_length

log = logging.getLogger(__name__)

Packing = Literal["varlen", "paths", "none"]
PARITY = {torch.float32: 3e-5, torch.float64: 1e-9}
"""Largest difference allowed between the fast way and the plain one, relative to the largest value of each channel."""
NEIGHBOURS = 3
EARLY_BLOCKS = 2
EARLY_HALF = 2e-2
"""The same in half precision, after the first blocks: rounding causes less than half of it there, while an unseen
token, a position that is off by one or another scale of logits cause more."""
PARITY_HALF = 5e-2
"""The same in half precision after the last block, where rounding has grown with every layer; by how much is
measured."""
ROWS_OF_NOISE = (1, 2, 4, 8)
"""Numbers of pairs of rows in the batches with which the rounding differences of batch shapes are measured."""
HALF = (torch.bfloat16, torch.float16)
TRIALS = ((9, 7), (9, 7), (0, 11), (0, 11))
"""Rows of the self-test: prompt tokens (the same ones), and tokens of their own."""
COUNTS_BY_ITSELF = "attn_temperature_tuning"
"""Setting by which Llama 4 scales queries by their position in the tensor, from the 8192nd on: no short trial would
show it."""
NOT_FINITE = "the states of the trial are not finite"
STRETCHED = ("longrope", "dynamic")


@dataclass(frozen=True)
class Mode:
    """The way in which a model is run.

    Attributes:
        packing: sequences one after the other without padding: "varlen" with torch's attention over sequences of
            varying length, "paths" with attention sequence by sequence, "none": stacked.
        sharing: whether rows with the same prompt run it once.
        causal: whether tokens after the last that counts can be left out, and padding put in their place.
        limit: longest sequence that the model has positions for.
        stretched: sequences longer than this change the rotary positions of a whole batch (long-context variants of
            Phi-3), so they only run with others of the same length.
        reason: why not something faster; empty where nothing is.
    """

    packing: Packing
    sharing: bool
    causal: bool
    limit: int | None = None
    stretched: int | None = None
    reason: str = ""

    def length(self, segment: Segment) -> int:
        """The number of tokens that are run for one row, padding included."""
        tokens = segment.stop if self.causal else len(segment.ids)
        if self.packing != "none" or not self.causal or (self.stretched and tokens > self.stretched):
            return tokens
        return padded_length(tokens, min(filter(None, (self.limit, self.stretched)), default=None))

    def describe(self) -> str:
        """The mode in words."""
        how = {"varlen": "packed (varlen)", "paths": "packed (a sequence at a time)", "none": "stacked by length"}
        shared = "prompts shared" if self.sharing else "prompts not shared"
        return f"{how[self.packing]}, {shared}" + (f" ({self.reason})" if self.reason else "")


def choose_mode(stack: Stack) -> Mode:
    """The fastest way that equals the plain one on a few tokens of this model; warns why not a faster one.

    The trials are made once for a model, unless its weights are broken.
    """
    model = stack.language_model.model
    where = f"mode, {'on a card' if is_on_card(stack.language_model) else 'on the CPU'}"
    mode = recall(model, where) or _find_mode(stack)
    return _announce(stack, mode if NOT_FINITE in mode.reason else remember(model, where, mode))


def _find_mode(stack: Stack) -> Mode:
    """The fastest way that proves right, by trials."""
    config = stack.language_model.model.config.get_text_config()
    plain = Mode(
        "none", False, stack.causal, stack.language_model.max_positions, _find_stretch_length(config), "packing is off"
    )
    if not accepts_packing(stack):
        reason = f"{type(stack.backbone).__name__} takes no position_ids or attention_mask"
        return replace(plain, reason=reason)
    if getattr(config, COUNTS_BY_ITSELF, None):
        return replace(plain, reason=f"{COUNTS_BY_ITSELF} counts positions in the packed sequence")
    reasons: list[str] = []
    tried: list[Mode] = [replace(plain, packing="paths", sharing=stack.causal, reason="")]
    if is_on_card(stack.language_model):
        if stack.language_model.dtype in HALF:
            tried.insert(0, replace(tried[0], packing="varlen"))
        else:
            reasons.append(f"varlen: takes half precision only, not {stack.language_model.dtype}")
    for mode in tried:
        for candidate in dict.fromkeys((mode, replace(mode, sharing=False))):
            problem, loops = _judge_mode(stack, candidate)
            if problem is None:
                reasons += [f"{candidate.packing}: {loop}" for loop in sorted(loops)]
                return replace(candidate, reason="; ".join(reasons))
            reasons.append(f"{candidate.packing}{' with shared prompts' if candidate.sharing else ''}: {problem}")
    return replace(plain, reason=reasons[-1].split(": ", 1)[1])


def is_on_card(language_model: LanguageModel) -> bool:
    """Whether the model is on a CUDA card, where torch has attention over sequences of varying length."""
    return language_model.device.type == "cuda"


def _announce(stack: Stack, mode: Mode) -> Mode:
    """The same mode; warns where a faster one was tried and failed."""
    if mode.reason:
        log.warning("%s runs %s", stack.family, mode.describe())
    return mode


def accepts_packing(stack: Stack) -> bool:
    """Whether the backbone can be told where each token stands."""
    return all(accepts(stack.backbone, name) for name in ("position_ids", "attention_mask"))


def parity(stack: Stack, mode: Mode) -> str | None:
    """Compare a packed way with the plain one on a few rows of random tokens; None if they agree, or what is wrong."""
    return _judge_mode(stack, mode)[0]


def _judge_mode(stack: Stack, mode: Mode) -> tuple[str | None, set[str]]:
    """``parity``, and why some layer's attention ran sequence by sequence in a way that is meant to do without."""
    segments = _trial_rows(stack)
    loops: set[str] = set()
    stacking = replace(mode, packing="none", sharing=False)
    with torch.inference_mode(), use_eval_mode(stack.language_model.model):
        plain = [_states(stack, stacking, [segment])[0] for segment in segments]
        try:
            fast = _states(stack, mode, segments, loops)
            others = [_states(stack, mode, _trial_rows(stack, neighbours)) for neighbours in range(1, NEIGHBOURS + 1)]
        except Exception as error:  # noqa: BLE001 (whatever a model of any family raises: it cannot run this way)
            return f"fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", loops
        if not all(torch.isfinite(row).all() for row in plain):
            return f"{NOT_FINITE}, so nothing can be compared", loops
        problem = _find_difference(stack, stacking, segments, plain, fast)
    return problem or _find_leak(stack, fast, others), loops


def _find_difference(
    stack: Stack, stacking: Mode, segments: Sequence[Segment], plain: Sequence[Tensor], fast: Sequence[Tensor]
) -> str | None:
    """Reason to refuse states that were computed in a fast way; None where they equal those of the plain way."""
    early = stack.width * min(EARLY_BLOCKS, len(stack.blocks))
    for where, limit in ((slice(0, early), EARLY_HALF), (slice(early, None), PARITY_HALF)):
        rows = [(row[:, where], other[:, where]) for row, other in zip(plain, fast, strict=True)]
        worst = max(channelwise_difference(*pair) for pair in rows)
        allowed = PARITY.get(stack.language_model.dtype, limit)
        if not worst <= allowed and where.start:
            allowed = allowed_difference(allowed, _measure_noise(stack, stacking, segments, [row for row, _ in rows]))
        if not worst <= allowed:
            when = "at the end" if where.start else "after the first blocks"
            return f"differs from the plain way by {worst:.1e} {when}, allowed is {allowed:.0e}"
    return None


def _measure_noise(stack: Stack, stacking: Mode, segments: Sequence[Segment], plain: Sequence[Tensor]) -> float:
    """Difference of the last states that rounding alone causes, measured in the plain way.

    Measured once in batches of other sizes, whose products are summed in another order on some machines, and once from
    embeddings that are perturbed by the rounding of their dtype, as every later number is.
    """
    differences = [0.0]
    early = stack.width * min(EARLY_BLOCKS, len(stack.blocks))

    def compare(batch: Sequence[Segment], first: int) -> None:
        for row, states in enumerate(_states(stack, stacking, batch)):
            differences.append(channelwise_difference(plain[first + row % 2], states[:, early:]))

    # The trial rows come in twos of one length.
    for first in range(0, len(segments), 2):
        for times in ROWS_OF_NOISE:
            compare([segments[first], segments[first + 1]] * times, first)
        with _perturb_embeddings(stack):
            compare([segments[first], segments[first + 1]], first)
    return max(differences)


@contextlib.contextmanager
def _perturb_embeddings(stack: Stack) -> Iterator[None]:
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        off = torch.randn(output.shape, generator=generator) * torch.finfo(output.dtype).eps / 4
        return (output.double() * (1 + off.to(output.device))).to(output.dtype)

    handle = stack.language_model.model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _find_leak(stack: Stack, fast: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> str | None:
    """Whether a row changes when other tokens stand in the rows before it, which rounding cannot explain.

    In half precision rounding is as large as what a recurrent layer carries over from one sequence to the next.
    """
    leak = max(channelwise_difference(fast[row], other[row]) for other in others for row in range(1, len(fast), 2))
    allowed = PARITY.get(stack.language_model.dtype, 0.0)
    return None if leak <= allowed else f"a row changes by {leak:.1e} with the rows that are packed before it"


@contextlib.contextmanager
def use_mode(stack: Stack, mode: Mode, batch: Batch, loops: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Set a model up for one batch; yields the arguments of its pass.

    Args:
        stack: the model.
        mode: the way in which the batch is run.
        batch: the tokens.
        loops: gets, during the pass, the reasons why a layer's attention ran sequence by sequence in a mode that is
            meant to do without.
    """
    device = stack.language_model.device
    if batch.positions is None:
        yield {"ids": batch.ids.to(device)}
        return
    ids, positions = (part.long()[None] for part in upload([batch.ids[0].numpy(), batch.positions[0].numpy()], device))
    # With a mask the library does not look for packed sequences itself; the layout decides which positions see which.
    options = {"ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    layout = Layout(batch.paths, mode.packing == "varlen", set() if loops is None else loops)
    with use_packed_attention(configs_of(stack.backbone), layout):
        yield options


def _trial_rows(stack: Stack, neighbours: int = 0) -> list[Segment]:
    """Rows of random tokens; every second has other tokens of its own for each choice of ``neighbours``."""
    rows = []
    for number, (prompt, own) in enumerate(TRIALS):
        opening = trial_ids(stack.language_model, 1, prompt)[0].tolist()
        shift = 3 * number + (17 * neighbours if number % 2 == 0 else 0)
        ids = opening + trial_ids(stack.language_model, 2 + shift, own)[0].tolist()
        rows.append(Segment(ids, 0, len(ids), prompt))
    return rows


def _states(stack: Stack, mode: Mode, segments: Sequence[Segment], loops: set[str] | None = None) -> list[Tensor]:
    """States that the first blocks, the last one and the backbone return for every token; see ``use_mode``."""
    lengths = [len(segment.ids) for segment in segments]
    trees = plant(segments, lengths, mode.sharing)
    batch = pack_trees(trees, segments, lengths) if mode.packing != "none" else stack_rows(trees, segments, mode.causal)
    taps = [Tap(block) for block in (*stack.blocks[:EARLY_BLOCKS], stack.blocks[-1])] + [Tap(stack.backbone)]
    with use_mode(stack, mode, batch, loops) as options, record_taps(taps) as seen:
        run_backbone(stack.backbone, **options)
    by_tap = {index: tensor.flatten(0, -2).double().cpu() for index, tensor in seen if tensor is not None}
    states = torch.cat([by_tap[index] for index in range(len(taps))], dim=-1)
    rows: list[Tensor] = [torch.empty(0)] * len(segments)
    for row, early, late in zip(batch.rows, batch.early, batch.late, strict=True):
        rows[row] = torch.cat([states[slice(*early)], states[slice(*late)]])
    return rows


def _find_stretch_length(config: Any) -> int | None:
    """Length beyond which rotary positions depend on the longest sequence of a batch; None where they never do."""
    for name in ("rope_parameters", "rope_scaling"):
        entry = getattr(config, name, None)
        kinds = [entry, *entry.values()] if isinstance(entry, dict) else []
        for kind in kinds:
            if isinstance(kind, dict) and kind.get("rope_type", kind.get("type")) in STRETCHED:
                limit = kind.get("original_max_position_embeddings") or getattr(
                    config, "original_max_position_embeddings", None
                )
                return int(limit or config.max_position_embeddings)
    return None
