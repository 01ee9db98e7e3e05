"""One pass over many sequences: token-budget batches in, a few small tensors a sequence out."""

import contextlib
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.engine.modes import Mode, attending
from probing.engine.readouts import Spots, combined
from probing.engine.trees import Batch, Segment, Tree, halves, packed, plant, stacked, take
from probing.errors import LayerNotFound, OutOfMemory, UsageError
from probing.models.hooks import Enough, tapped
from probing.models.layers import Site, Stack, evaluating, output_site, run_backbone
from probing.types import Place, Pooling

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2048
MOST_BATCH_TOKENS = 65536
LEAST_BATCH_TOKENS = 1024
TRIM_SECONDS = 0.25
ONE_AT_A_TIME = threading.RLock()
"""Hooks and the choice of attention belong to the model: two threads in one model would read each other's states."""
# CUDA's allocator has a class of error for it; the CPU's and the matrix library of a card have only a sentence.
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Readings:
    """What was kept of every row, on the CPU (but see ``Stream.keep_on_device``).

    Attributes:
        values: for each pooling, one tensor a site: [row width], or [token width] for "tokens" (what ``per_token``
            made of the states, where it is given).
        counts: how many states counted, [row].
    """

    values: dict[Pooling, list[Tensor]]
    counts: Tensor


@dataclass
class TokenBudget:
    """How many padded tokens go into one batch; shrinks when memory runs out, and stays so."""

    tokens: int
    reason: str

    def shrink(self, failed: int) -> None:
        """Halve after a batch of ``failed`` padded tokens did not fit."""
        self.tokens = max(1, min(self.tokens, failed) // 2)
        self.reason = f"halved when {failed} tokens did not fit"


def find_budget(stack: Stack, batch_tokens: int | None) -> TokenBudget:
    """The budget that was asked for, or one that fits the device.

    Raises:
        UsageError: less than a token.
    """
    if batch_tokens is None:
        return choose_batch_tokens(stack, stack.language_model.device, stack.language_model.max_positions)
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens must be at least 1, not {batch_tokens}")
    return TokenBudget(batch_tokens, "as asked for")


def choose_batch_tokens(stack: Stack, device: torch.device, max_positions: int | None = None) -> TokenBudget:
    """A token budget for this device.

    On a CPU a few thousand tokens keep all cores busy, and more only costs memory. On a CUDA card one batch is run to
    see what a token takes, and half of the free memory is filled, up to a size beyond which nothing gets faster.
    """
    if device.type != "cuda":
        return TokenBudget(CPU_BATCH_TOKENS, f"fixed on {device.type}: larger batches are no faster")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode(), evaluating(stack.language_model.model):
        trial = torch.zeros(trial_shape(max_positions), dtype=torch.long, device=device)
        run_backbone(stack.backbone, trial)
    per_token = (torch.cuda.max_memory_allocated(device) - before) / trial.numel()
    free = torch.cuda.mem_get_info(device)[0]
    tokens = fit_batch_tokens(free, per_token)
    return TokenBudget(tokens, f"half of {free / 2**30:.1f} GiB free at {per_token / 2**10:.0f} KiB a token")


def trial_shape(max_positions: int | None) -> tuple[int, int]:
    """Rows and length of a batch of about 1024 tokens that the model has positions for."""
    length = min(LEAST_BATCH_TOKENS, max_positions or LEAST_BATCH_TOKENS)
    return -(-LEAST_BATCH_TOKENS // length), length


def fit_batch_tokens(free_bytes: int, bytes_per_token: float) -> int:
    """Tokens that fill half of the free memory, as a multiple of 1024 between 1024 and 65536."""
    tokens = int(free_bytes / 2 / max(bytes_per_token, 1.0)) // LEAST_BATCH_TOKENS * LEAST_BATCH_TOKENS
    return min(max(tokens, LEAST_BATCH_TOKENS), MOST_BATCH_TOKENS)


@dataclass(eq=False)
class Stream:
    """One model, the places to read and what to keep there.

    Attributes:
        stack: the model.
        mode: how it is run.
        sites: where to look; layers above the last of them are not run.
        poolings: what to keep at each.
        budget: tokens a batch, padding included; one sequence longer than that runs alone. Another may be put in place.
        dtype: of what is kept; by default float32 (float64 for a float64 model).
        per_token: what is kept of "tokens" in place of their states: called with the states that count and the id of
            the token that follows each, answers [token number].
        keep_on_device: whether the states of "tokens" stay on the model's device, in its dtype.
    """

    stack: Stack
    mode: Mode
    sites: Sequence[Site]
    poolings: Sequence[Pooling]
    budget: TokenBudget
    dtype: torch.dtype | None = None
    per_token: Callable[[Tensor, Tensor], Tensor] | None = None
    keep_on_device: bool = False

    def read(self, segments: Sequence[Segment], progress: Callable[[int], None] | None = None) -> Readings:
        """Run every row once, longest first, and keep what was asked for.

        States are reduced on the device; no batch's states outlive it. When memory runs out the budget is halved, for
        the rest of its life, and the same rows run again.

        Args:
            segments: at least one row, each with at least one position that counts.
            progress: called after each batch with the number of tokens of its rows.

        Returns:
            In the order of the rows, whatever the batches were.

        Raises:
            OutOfMemory: one sequence alone does not fit.
        """
        lengths = [self.mode.length(segment) for segment in segments]
        counts = torch.tensor([segment.stop - segment.start for segment in segments])
        readings = Readings({pooling: [] for pooling in self.poolings}, counts)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        with ONE_AT_A_TIME, evaluating(self.stack.language_model.model):
            for trees, stacking in self._parts(segments, lengths):
                self._run_all(trees, stacking, segments, lengths, readings, offsets, progress)
        return readings

    def _parts(self, segments: Sequence[Segment], lengths: Sequence[int]) -> list[tuple[list[Tree], bool]]:
        """Rows that are run together, and whether they are stacked, which only rows of one length can be."""
        stacking = self.mode.packing == "none"
        trees, limit = plant(segments, lengths, self.mode.sharing), self.mode.stretched
        if limit is None:
            return [(trees, stacking)]
        short, alone = [], []
        for tree in trees:
            if max(lengths[row] for row in tree.rows) <= limit:
                short.append(tree)
            else:
                alone += [Tree((row,), 0, lengths[row]) for row in tree.rows]
        return [(sorted(alone, key=lambda tree: -tree.tokens), True), (short, stacking)]

    def _run_all(
        self,
        trees: list[Tree],
        stacking: bool,
        segments: Sequence[Segment],
        lengths: Sequence[int],
        readings: Readings,
        offsets: Tensor,
        progress: Callable[[int], None] | None,
    ) -> None:
        left, trimmed = deque(trees), time.monotonic()
        while left:
            if left[0].tokens > self.budget.tokens and len(left[0].rows) > 1:
                left.extendleft(reversed(halves(left.popleft(), lengths)))
                continue
            some = [left.popleft() for _ in range(take(left, self.budget.tokens, alike=stacking))]
            found = self._try(some, stacking, segments, lengths)
            if found is None:
                left.extendleft(reversed(self._give_way(some, lengths)))
                continue
            spots, values = found
            self._store(readings, spots, values, offsets)
            if self.stack.language_model.device.type == "cpu" and time.monotonic() - trimmed > TRIM_SECONDS:
                trim_memory()
                trimmed = time.monotonic()
            if progress is not None:
                progress(sum(segments[row].stop for tree in some for row in tree.rows))

    def _try(
        self, trees: Sequence[Tree], stacking: bool, segments: Sequence[Segment], lengths: Sequence[int]
    ) -> tuple[Spots, dict[Pooling, list[Tensor]]] | None:
        """``_run``, or None when memory ran out; the error is not kept, since its frames hold the batch's memory."""
        try:
            make = stacked(trees, segments, self.mode.causal) if stacking else packed(trees, segments, lengths)
            return self._run(make, segments)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(sentence in str(error) for sentence in OUT_OF_MEMORY):
                return None
            raise

    def _run(self, batch: Batch, segments: Sequence[Segment]) -> tuple[Spots, dict[Pooling, list[Tensor]]]:
        spots = Spots(batch)
        taps = [tap for site in self.sites for tap in site.taps]
        parts: list[dict[Pooling, Tensor]] = [{} for _ in taps]
        waiting = set(range(len(taps)))

        def receive(index: int, tensor: Tensor | None) -> None:
            if tensor is None or index not in waiting:
                raise LayerNotFound(
                    f"{type(taps[index].module).__name__} of {self.stack.family} "
                    f"{'passes no tensor' if tensor is None else 'ran twice in one pass'}"
                )
            states = tensor.flatten(0, -2)
            parts[index] = {pooling: spots.read(pooling, states) for pooling in self.poolings}
            waiting.discard(index)
            if not waiting:
                raise Enough

        device = self.stack.language_model.device
        with torch.inference_mode(), attending(self.stack, self.mode, batch) as options, tapped(taps, receive):
            # A caller's autocast would round every layer in half precision without a word.
            with contextlib.suppress(Enough), torch.autocast(device.type, enabled=False):
                run_backbone(self.stack.backbone, batch.ids.to(device), **options)
            if waiting:
                name = self.stack.name_of(taps[min(waiting)].module)
                raise LayerNotFound(f"'{name}' of {self.stack.family} did not run in this pass")
            following = _following(batch, segments) if self.per_token is not None else None
            return spots, {pooling: self._combine(pooling, parts, following) for pooling in self.poolings}

    def _combine(
        self, pooling: Pooling, parts: Sequence[dict[Pooling, Tensor]], following: Tensor | None
    ) -> list[Tensor]:
        values, at = [], 0
        for site in self.sites:
            among = [part[pooling] for part in parts[at : at + len(site.taps)]]
            value = combined([part.to(among[0].device) for part in among], site.factors)
            if self.per_token is not None and following is not None and pooling == "tokens":
                value = self.per_token(value, following)
            kept = value.dtype if self._stays(pooling) else torch.promote_types(value.dtype, torch.float32)
            values.append(value.to(self.dtype or kept))
            at += len(site.taps)
        return values

    def _store(self, readings: Readings, spots: Spots, values: dict[Pooling, list[Tensor]], offsets: Tensor) -> None:
        """Put a batch's values where its rows belong."""
        for pooling, sites in values.items():
            if not readings.values[pooling]:
                items = int(offsets[-1]) if pooling == "tokens" else len(offsets) - 1
                devices = [v.device if self._stays(pooling) else torch.device("cpu") for v in sites]
                readings.values[pooling] += [
                    torch.empty((items, v.shape[-1]), dtype=v.dtype, device=device)
                    for v, device in zip(sites, devices, strict=True)
                ]
            where = spots.rows
            if pooling == "tokens":
                where = torch.cat([torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in spots.rows])
            for whole, part in zip(readings.values[pooling], sites, strict=True):
                whole[where.to(whole.device)] = part.to(whole.device)

    def _stays(self, pooling: Pooling) -> bool:
        """Whether what is kept stays as it is, where it is."""
        return self.keep_on_device and pooling == "tokens"

    def _give_way(self, trees: list[Tree], lengths: Sequence[int]) -> list[Tree]:
        """What to run instead of a batch that did not fit."""
        device, tokens = self.stack.language_model.device, sum(tree.tokens for tree in trees)
        if len(trees) == 1 and len(trees[0].rows) == 1:
            raise OutOfMemory(
                f"a single sequence of {tokens} tokens does not fit into the memory of {device}; use --max-length, a "
                f"smaller --dtype or a larger device"
            )
        self.budget.shrink(tokens)
        log.warning(
            "out of memory with %d sequences, %d tokens: going on with %d tokens a batch",
            sum(len(tree.rows) for tree in trees),
            tokens,
            self.budget.tokens,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return halves(trees[0], lengths) if len(trees) == 1 else trees


def _following(batch: Batch, segments: Sequence[Segment]) -> Tensor:
    """Id of the token behind each state that counts, row after row."""
    return torch.tensor(
        [id for row in batch.rows for id in segments[row].ids[segments[row].start + 1 : segments[row].stop + 1]]
    )


def trim_memory() -> None:
    """Have the C library give freed memory back to the system, where it can (glibc).

    Batches of many different sizes leave holes in the heap that it would keep: without this, peak memory grew with the
    number of rows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def first_nonfinite_place(stack: Stack, mode: Mode, segment: Segment, budget: TokenBudget) -> str | None:
    """The first place whose states are NaN or infinite for this one row; None if all are finite.

    Looks at every token before ``stop``, at the cost of one pass.
    """
    places = [Place("resid_pre", 0), *(Place("resid_post", layer) for layer in range(len(stack.blocks)))]
    sites = [*stack.sites(places), output_site(stack)]
    whole = Segment(segment.ids, 0, segment.stop)
    sums = Stream(stack, mode, sites, ("sum",), budget).read([whole]).values["sum"]
    bad = [index for index, total in enumerate(sums) if not torch.isfinite(total).all()]
    if not bad:
        return None
    return "the embedding" if bad[0] == 0 else "the final norm" if bad[0] > len(stack.blocks) else f"layer {bad[0] - 1}"
