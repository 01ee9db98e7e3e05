"""One pass over many sequences: token-budget batches in, a few small tensors a sequence out."""

import contextlib
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probing.engine.budget import TokenBudget, choose_trial_shape
from probing.engine.compiled import use_compiled_blocks
from probing.engine.launched_batches import LaunchedBatch, Readings, Values
from probing.engine.modes import Mode, use_mode
from probing.engine.readouts import Spots, combine
from probing.engine.trees import Batch, Segment, Tree, count_fitting, pack_trees, plant, split_tree, stack_rows
from probing.errors import LayerNotFound, OutOfMemory
from probing.kernels.dispatch import with_fallbacks
from probing.kernels.output_head import is_out_of_memory
from probing.models.hooks import Enough, tap_modules
from probing.models.passes import run_backbone, trial_ids, use_eval_mode
from probing.models.shares import count_shares
from probing.models.stack import Site, Stack, output_site
from probing.types import Place, Pooling

log = logging.getLogger(__name__)

TRIM_SECONDS = 0.25
SLOWER = "attention runs a sequence at a time in some layers: {}"
ONE_AT_A_TIME = threading.RLock()
"""Hooks and the choice of attention belong to the model: two threads in one model would read each other's states."""


@dataclass(eq=False)
class Stream:
    """One model, the places to read and what to keep there.

    Attributes:
        stack: the model.
        mode: the way in which the model is run.
        sites: places to read; layers above the last of them are not run.
        poolings: values to keep at each place.
        budget: tokens a batch, padding included; one sequence longer than that runs alone. Another may be put in place.
        dtype: dtype of what is kept; by default float32 (float64 for a float64 model).
        per_token: function whose values are kept for "tokens" in place of states: called with the states that count and
            the id of the token that follows each, answers [token number].
        keep_on_device: whether the states of "tokens" stay on the model's device, in its dtype.
        compiled: whether the blocks are compiled by ``torch.compile`` while rows are read.
        overlap: whether a batch is launched before the values of the last one have come to the host; by default on a
            CUDA card, which is then never idle.
        loops: why some layer's attention ran sequence by sequence although the mode is meant to do without.
    """

    stack: Stack
    mode: Mode
    sites: Sequence[Site]
    poolings: Sequence[Pooling]
    budget: TokenBudget
    dtype: torch.dtype | None = None
    per_token: Callable[[Tensor, Tensor], Tensor] | None = None
    keep_on_device: bool = False
    compiled: bool = False
    overlap: bool | None = None
    loops: set[str] = field(default_factory=set)
    _trimmed: float = field(init=False, default_factory=time.monotonic)

    @property
    def how(self) -> str:
        """How the rows are run, in words: the mode, and every slower way that was taken."""
        ways = [self.mode.describe(), *(["blocks compiled"] if self.compiled else [])]
        ways += [SLOWER.format(reason) for reason in sorted(self._find_unforeseen(self.loops))]
        return with_fallbacks("; ".join(ways))

    def _find_unforeseen(self, loops: set[str]) -> set[str]:
        """Reasons that the mode does not name already, since the trial's rows were too short to show them."""
        return {reason for reason in loops if reason not in self.mode.reason}

    def run_trial(self, tokens: int) -> int:
        """Run one batch of about so many tokens, with everything that is kept of it, and return how many they were."""
        rows, length = choose_trial_shape(tokens, self.stack.language_model.max_positions)
        ids = trial_ids(self.stack.language_model, 1, length)[0].tolist()
        segments = [Segment(ids, 0, length - 1) for _ in range(rows)]
        lengths = [self.mode.length(segment) for segment in segments]
        trees = plant(segments, lengths, sharing=False)
        with ONE_AT_A_TIME, use_eval_mode(self.stack.language_model.model):
            batch = self._batch(trees, self.mode.packing == "none", segments, lengths)
            self._run(batch, segments)[1].wait()
        return sum(lengths)

    def read(self, segments: Sequence[Segment], progress: Callable[[int], None] | None = None) -> Readings:
        """Run every row once, longest first, and keep what was asked for.

        States are reduced on the device, and the states of a batch are freed after it. When memory runs out the budget
        is halved, for the rest of its life, and the same rows run again.

        Args:
            segments: at least one row, each with at least one position that counts.
            progress: called after each batch with the number of tokens of its rows.

        Returns:
            What was kept of each row, in the order of the rows, whatever the batches were.

        Raises:
            OutOfMemory: one sequence alone does not fit; or a batch, where the model is split over processes.
        """
        lengths = [self.mode.length(segment) for segment in segments]
        counts = torch.tensor([segment.stop - segment.start for segment in segments])
        readings = Readings({pooling: [] for pooling in self.poolings}, counts)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        model = self.stack.language_model.model
        with ONE_AT_A_TIME, use_eval_mode(model), use_compiled_blocks(self.stack, self.compiled):
            for trees, stacking in self._parts(segments, lengths):
                self._run_all(trees, stacking, segments, lengths, readings=readings, offsets=offsets, progress=progress)
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
        left: deque[Tree] = deque(trees)
        waiting: deque[LaunchedBatch] = deque()
        overlap = self.overlap if self.overlap is not None else self.stack.language_model.device.type == "cuda"

        def store_all_but(most: int) -> None:
            while len(waiting) > most:
                batch = waiting.popleft()
                batch.store(readings, offsets)
                if progress is not None:
                    progress(batch.tokens)

        while left:
            if left[0].tokens > self.budget.tokens and len(left[0].rows) > 1:
                left.extendleft(reversed(split_tree(left.popleft(), lengths)))
                continue
            some = [left.popleft() for _ in range(count_fitting(left, self.budget.tokens, alike=stacking))]
            launched = self._try(some, stacking, segments, lengths)
            if launched is None:
                store_all_but(0)
                left.extendleft(reversed(self._split_batch(some, lengths)))
                continue
            waiting.append(LaunchedBatch(*launched, sum(segments[row].stop for tree in some for row in tree.rows)))
            store_all_but(1 if overlap else 0)
            self._trim()
        store_all_but(0)

    def _trim(self) -> None:
        """Give memory back now and then; a batch of another size leaves holes in the heap of the host."""
        if self.stack.language_model.device.type == "cpu" and time.monotonic() - self._trimmed > TRIM_SECONDS:
            trim_memory()
            self._trimmed = time.monotonic()

    def _try(
        self, trees: Sequence[Tree], stacking: bool, segments: Sequence[Segment], lengths: Sequence[int]
    ) -> tuple[Spots, Values] | None:
        """``_run``, or None when memory ran out; the error is not kept, since its frames hold the batch's memory."""
        try:
            return self._run(self._batch(trees, stacking, segments, lengths), segments)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return None
            raise

    def _batch(
        self, trees: Sequence[Tree], stacking: bool, segments: Sequence[Segment], lengths: Sequence[int]
    ) -> Batch:
        return stack_rows(trees, segments, self.mode.causal) if stacking else pack_trees(trees, segments, lengths)

    def _run(self, batch: Batch, segments: Sequence[Segment]) -> tuple[Spots, Values]:
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
        loops: set[str] = set()
        attention = use_mode(self.stack, self.mode, batch, loops)
        with torch.inference_mode(), attention as options, tap_modules(taps, receive):
            # Under a caller's autocast every layer would be rounded to half precision silently.
            with contextlib.suppress(Enough), torch.autocast(device.type, enabled=False):
                run_backbone(self.stack.backbone, **options)
            if waiting:
                name = self.stack.name_of(taps[min(waiting)].module)
                raise LayerNotFound(f"'{name}' of {self.stack.family} did not run in this pass")
            self._warn_of_slower_ways(loops)
            following = _collect_next_ids(batch, segments, device) if self.per_token is not None else None
            values = {pooling: self._combine(pooling, parts, following) for pooling in self.poolings}
            return spots, Values(values, self._staying())

    def _warn_of_slower_ways(self, loops: set[str]) -> None:
        """Warn once of what ran slower than the mode promises; the reasons are known after the pass."""
        for reason in self._find_unforeseen(loops - self.loops):
            log.warning("%s: %s", self.stack.family, SLOWER.format(reason))
        self.loops |= loops

    def _combine(
        self, pooling: Pooling, parts: Sequence[dict[Pooling, Tensor]], following: Tensor | None
    ) -> list[Tensor]:
        values, at = [], 0
        for site in self.sites:
            among = [part[pooling] for part in parts[at : at + len(site.taps)]]
            value = combine([part.to(among[0].device) for part in among], site.factors)
            if self.per_token is not None and following is not None and pooling == "tokens":
                value = self.per_token(value, following)
            kept = value.dtype if pooling in self._staying() else torch.promote_types(value.dtype, torch.float32)
            values.append(value.to(self.dtype or kept))
            at += len(site.taps)
        return values

    def _staying(self) -> tuple[Pooling, ...]:
        """Poolings of which what is kept stays where it is."""
        return ("tokens",) if self.keep_on_device else ()

    def _split_batch(self, trees: list[Tree], lengths: Sequence[int]) -> list[Tree]:
        """Smaller batches to run instead of one that did not fit."""
        device, tokens = self.stack.language_model.device, sum(tree.tokens for tree in trees)
        if len(trees) == 1 and len(trees[0].rows) == 1:
            raise OutOfMemory(
                f"a single sequence of {tokens} tokens does not fit into the memory of {device}; use --max-length, a "
                f"smaller --dtype or a larger device"
            )
        if count_shares(self.stack.language_model.model) > 1:
            # The other processes wait for this one in the same batch, and know nothing of smaller ones.
            raise OutOfMemory(
                f"a batch of {tokens} tokens does not fit into the memory of {device}, and in tensor parallel the "
                f"processes cannot go on with smaller ones; give --batch-tokens {max(1, tokens // 2)} or less"
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
        return split_tree(trees[0], lengths) if len(trees) == 1 else trees


def _collect_next_ids(batch: Batch, segments: Sequence[Segment], device: torch.device) -> Tensor:
    """Id of the token behind each state that counts, row after row; on the host, ready to be copied to the device."""
    following = torch.tensor(
        [id for row in batch.rows for id in segments[row].ids[segments[row].start + 1 : segments[row].stop + 1]]
    )
    # Copying from unpinned memory, the host would wait for all queued work of the card.
    return following.pin_memory() if device.type == "cuda" else following


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
