"""What a model answers, and how likely it finds its own and other words: with an edit on it as without."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from probing.directions.refusal_score import first_token_divergence
from probing.engine.stream import ONE_AT_A_TIME, Stream
from probing.engine.trees import Segment
from probing.errors import OutOfMemory, UsageError
from probing.instruments.directions import LAST_STATE, score_states
from probing.instruments.reading import Advance, open_stream, report_tokens, set_up
from probing.kernels.dispatch import fall_back
from probing.kernels.output_head import Unembedding, is_out_of_memory, logit_chunks
from probing.kernels.token_stats import token_stats
from probing.models.devices import free_memory
from probing.models.heads import find_head
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.models.passes import use_eval_mode
from probing.types import Place

log = logging.getLogger(__name__)

CPU_ROWS = 32
"""Rows that are generated together on a CPU, where more are no faster."""
MOST_ROWS = 256
WINDOWS = 32
"""Windows of a text whose states are in memory together."""
SHARE_OF_MEMORY = 0.5
"""Of what is free on a card, that caches may take."""


@dataclass(frozen=True)
class Generated:
    """What a model wrote behind one prompt.

    Attributes:
        ids: token ids, without the end of turn.
        ended: whether it ended by itself, not because enough tokens were there.
    """

    ids: list[int]
    ended: bool


@dataclass
class Generator:
    """Writes greedy answers with one model, as it is at the time: hooks that are on it work.

    Every token is the most likely one, whatever sampling or penalties the model's generation config asks for; that and
    the tokenizer's padding side stay as they are. Rows of like length are padded on the left and run together. The
    cache has a fixed size where transformers has such a one for the model: as fast as one that grows on a CPU, not
    measured on a card.

    Args:
        model: the model and its tokenizer.
        new_tokens: number of tokens after which an answer is cut.
        batch_tokens: tokens a batch, padding and new tokens included; by the memory of the device when None.

    Raises:
        UsageError: a model that does not generate.
    """

    model: LanguageModel
    new_tokens: int
    batch_tokens: int | None = None
    how: str = field(init=False)
    _rows: int = field(init=False, default=MOST_ROWS)
    _found: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not getattr(self.model.model, "can_generate", lambda: False)():
            raise UsageError(f"{type(self.model.model).__name__} does not generate text")
        # Whether the cache may have a fixed size is what transformers asks before it compiles a model.
        self.static = bool(getattr(self.model.model, "_can_compile_fullgraph", False))
        self.how = f"greedy, {'static' if self.static else 'dynamic'} cache"
        if not self.static:
            fall_back(
                "generation with a cache that grows",
                f"transformers has no static cache for {type(self.model.model).__name__}",
            )

    def write(self, prompts: Sequence[Sequence[int]], report: Advance | None = None) -> list[Generated]:
        """Answers to prompts of token ids, in their order.

        Raises:
            OutOfMemory: one prompt alone does not fit.
        """
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        found: dict[int, Generated] = {}
        whole = self.model.model
        with ONE_AT_A_TIME, torch.autocast(self.model.device.type, enabled=False), use_eval_mode(whole), self._plain():
            while order:
                rows = order[: self._count_rows(len(prompts[order[0]]))]
                written = self._try([prompts[row] for row in rows])
                if written is None:
                    continue
                found |= dict(zip(rows, written, strict=True))
                order = order[len(rows) :]
                if report is not None:
                    report(len(rows), sum(len(each.ids) for each in written))
        return [found[row] for row in range(len(prompts))]

    def _count_rows(self, length: int) -> int:
        """Number of rows of at most this length that are run together."""
        tokens = length + self.new_tokens
        if self.batch_tokens is not None:
            fitting = self.batch_tokens // tokens
        elif self.model.device.type == "cpu":
            fitting = CPU_ROWS
        else:
            free = free_memory(self.model.device) or 0
            fitting = int(SHARE_OF_MEMORY * free / (tokens * self._bytes_a_token()))
        return max(1, min(fitting, self._rows))

    def _bytes_a_token(self) -> float:
        """Bytes that one token takes: keys and values of every layer, and its states while the prompt is run."""
        config = self.model.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        cached = 2 * self.model.layers * (getattr(config, "num_key_value_heads", None) or heads) * size
        return float(self.model.dtype.itemsize * (cached + 16 * config.hidden_size))

    def _try(self, prompts: Sequence[Sequence[int]]) -> list[Generated] | None:
        """``_run``, or None when memory ran out: then fewer rows are run together from now on."""
        try:
            return self._run(prompts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if len(prompts) == 1:
            raise OutOfMemory(
                f"a single prompt of {len(prompts[0])} tokens with {self.new_tokens} new ones does not fit into the "
                f"memory of {self.model.device}; use a smaller --dtype, fewer --new-tokens or a larger device"
            )
        self._rows = len(prompts) // 2
        log.warning("out of memory with %d answers at once: going on with %d", len(prompts), self._rows)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        longest = max(map(len, prompts))
        filler = self._filler()
        padded = [[filler] * (longest - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self.model.device
        with torch.inference_mode():
            output = self.model.model.generate(
                torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._settings(),
            )
        return [self._cut(row) for row in output[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> Generated:
        closing = set(self._closing())
        end = next((at for at, id in enumerate(ids) if id in closing), None)
        return Generated(ids if end is None else ids[:end], end is not None)

    def _settings(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.new_tokens,
            eos_token_id=self._closing() or None,
            pad_token_id=self._filler(),
            bos_token_id=self.model.tokenizer.bos_token_id,
            use_cache=True,
            disable_compile=True,
            cache_implementation="static" if self.static else None,
        )

    def _closing(self) -> list[int]:
        """Ids that end an answer: those of the model's generation config and of the tokenizer."""
        found = self._found if self._found is not None else self.model.model.generation_config
        given = getattr(found, "eos_token_id", None)
        listed = given if isinstance(given, list) else [given]
        return list(dict.fromkeys(id for id in [*listed, self.model.tokenizer.eos_token_id] if id is not None))

    def _filler(self) -> int:
        """The id that fills rows up, which is never looked at."""
        known = [self.model.tokenizer.pad_token_id, *self._closing(), 0]
        return next(id for id in known if id is not None)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """Without the model's own generation config, whose penalties would be mixed into ours."""
        whole = self.model.model
        self._found = whole.generation_config
        try:
            whole.generation_config = GenerationConfig()
            yield
        finally:
            whole.generation_config, self._found = self._found, None


@dataclass(frozen=True, eq=False)
class LogitReader:
    """Reads the states that a model's output head multiplies, at chosen tokens; hooks that are on the model work.

    Attributes:
        model: the model.
        stream: reads the states.
        head: the output head, proved.
    """

    model: LanguageModel
    stream: Stream
    head: Unembedding

    @staticmethod
    def open(model: LanguageModel, batch_tokens: int | None = None) -> "LogitReader":
        """A reader of a causal language model.

        Raises:
            LayerNotFound: no output head that is understood. UsageError: a budget of less than one token.
        """
        with set_up(model):
            stack = find_backbone(model)
            sites = stack.sites([LAST_STATE if stack.normed else Place("resid_post", -1)])
            return LogitReader(model, open_stream(stack, sites, ("tokens",), batch_tokens), find_head(stack))

    def read(self, segments: Sequence[Segment], report: Advance | None = None) -> Float[Tensor, "token width"]:
        """States at the positions that count, row after row."""
        tokens = sum(segment.stop for segment in segments)
        with set_up(self.model):
            readings = self.stream.read(segments, report_tokens(report, len(segments), tokens))
        return readings.values["tokens"][0]


def predict_answer(prompt: Sequence[int], answer: Sequence[int] = ()) -> Segment:
    """The positions whose states predict the first token behind a prompt, and those of an answer that is given."""
    ids = [*prompt, *answer]
    return Segment(ids, len(prompt) - 1, max(len(ids) - 1, len(prompt)), len(prompt))


def score_first_tokens(
    reader: LogitReader, prompts: Sequence[Sequence[int]], tokens: Sequence[int], report: Advance | None = None
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt width"]]:
    """Refusal log-odds of prompts of token ids, and the states that they are read from."""
    states = reader.read([predict_answer(prompt) for prompt in prompts], report)
    return score_states(states, reader.head, tokens), states


def diverge(
    base: Float[Tensor, "token width"], base_head: Unembedding, edited: Float[Tensor, "token width"], head: Unembedding
) -> Float[Tensor, " token"]:
    """KL(base || edited) of the next token at each of the same positions, in nats, float64; NaN where a state is.

    Args:
        base: states before the edit, as the head multiplies them.
        base_head: the output head before the edit.
        edited: states after it.
        head: the output head after it.
    """
    pairs = zip(
        logit_chunks(base.to(base_head.weight.device), base_head),
        logit_chunks(edited.to(head.weight.device), head),
        strict=True,
    )
    return torch.cat([first_token_divergence(own, other.to(own.device)).cpu() for (_, own), (_, other) in pairs])


def mean_by_row(values: Float[Tensor, " token"], counts: Sequence[int]) -> list[float]:
    """Mean of the values of each row, of which there are so many, one row after the other; NaN for none."""
    return [float(part.mean()) for part in values.split(list(counts))]


def measure_cross_entropy(
    reader: LogitReader, windows: Sequence[Sequence[int]], report: Advance | None = None
) -> tuple[list[float], list[int]]:
    """Sum of the cross-entropy in nats over the tokens of each window but its first, and the number of these tokens."""
    sums: list[float] = []
    for start in range(0, len(windows), WINDOWS):
        some = windows[start : start + WINDOWS]
        states = reader.read([Segment(list(window), 0, len(window) - 1) for window in some], report)
        device = reader.head.weight.device
        targets = torch.tensor([id for window in some for id in window[1:]], device=device)
        logprobs = token_stats(states.to(device), reader.head, targets).logprob.double().cpu()
        sums += [-float(part.sum()) for part in logprobs.split([len(window) - 1 for window in some])]
    return sums, [len(window) - 1 for window in windows]
