"""Options of ``probing capture``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.data.places import expand_places
from probing.runs.common.options import check_at_least
from probing.types import Capture, Over, Pooling


@dataclass(frozen=True)
class CaptureConfig:
    """Write hidden states of a dataset's texts: any places of any model, pooled or every token.

    Args:
        model: folder or hub id of a causal language model or an encoder, or "bundled" for the small one included.
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled".
        places: separated by commas: resid_pre, resid_post, attn_out or mlp_out with a layer (resid_post:3,
            resid_post:-1, resid_post:4..8, resid_post:all), or final_norm.
        out: folder for manifest.json, rows.parquet and the shards; an interrupted run in it is continued.
        pooling: "last", "first", "mean", "sum" of the tokens that count, or all "tokens".
        over: which tokens count: "text" (all), "content" (without special tokens at both ends), "prompt", "response",
            "template" (what the chat template writes after an instruction), "span".
        chat: put plain texts into a user's turn of the chat template.
        substring: the span that counts in every row, with --over span.
        span_column: column with each row's span, a substring or [first character, one past the last].
        text_column: column of the texts or conversations; by default text, prompt, instruction, question, statement or
            messages. Rows with chosen and rejected become two.
        response_column: column of the responses; by default response or completion, if there is one.
        label_column: column of the labels; by default label, if there is one.
        category_column: column of the categories; by default category, if there is one.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        split: which split, where the data have several.
        revision: branch, tag or commit of a hub model.
        dtype: of the model: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        values_dtype: of what is written: "auto" is float32 for means and sums, otherwise the model's.
        device: "auto", "cpu", "cuda", "cuda:1", ...; "balanced" spreads the layers over all cards and the host.
        batch_tokens: tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; longer rows are marked, not cut. By default the model's limit.
        eos: whether the end of turn belongs to a response, as in training.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoint brings with it.
        shard_rows: rows a shard; an interrupted run loses at most one.
        append: add rows to a finished store; rows that it already has are passed over.
        repair: read every shard and compute anew what is missing or damaged.
    """

    model: str
    data: str
    places: str | list[str]
    out: Path
    pooling: Pooling = "last"
    over: Over = "text"
    chat: bool = False
    substring: str | None = None
    span_column: str | None = None
    text_column: str | None = None
    response_column: str | None = None
    label_column: str | None = None
    category_column: str | None = None
    id_column: str | None = None
    split: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    values_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    eos: bool = True
    compile: bool = False
    trust_remote_code: bool = False
    shard_rows: int = 1024
    append: bool = False
    repair: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=1, shard_rows=1)
        if (self.over == "span") != (self.substring is not None or self.span_column is not None):
            raise ValueError("over 'span' and one of substring and span_column go together")
        expand_places(self.places, None)

    def request(self, layers: int) -> Capture:
        """What to read from a model of so many layers."""
        places = expand_places(self.places, layers)
        return Capture(places, self.pooling, self.over, self.values_dtype, self.chat)
