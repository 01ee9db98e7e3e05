"""Options of ``probing capture``."""

from dataclasses import dataclass

from probing.data.places import expand_places
from probing.runs.common.options import (
    MOST_ROWS,
    ArrayOptions,
    Dtype,
    EngineOptions,
    ResponseOptions,
    StatesOptions,
    TextOptions,
    option,
)
from probing.types import SHORT_DTYPES, Capture, Pooling


@dataclass(frozen=True, kw_only=True)
class CaptureConfig(TextOptions, ResponseOptions, StatesOptions, ArrayOptions, EngineOptions):
    """Write hidden states of a dataset's texts: any places of any model, pooled or every token.

    Writes manifest.json, rows.parquet and the shards.

    Args:
        model: folder or hub id of a causal language model or an encoder, or "bundled".
        pooling: "last", "first", "mean", "sum" of the tokens that count, or all "tokens".
        substring: the span that counts in every row, with --over span.
        span_column: column with each row's span, a substring or [first character, one past the last].
        values_dtype: precision of what is written: "auto" is float32 for means and sums, otherwise the model's.
        shard_rows: number of rows in a shard; an interrupted run loses at most so many.
        append: add rows to a finished store; rows that it already has are passed over.
        repair: read every shard and compute anew what is missing or damaged.
    """

    model: str = option(identity=False, holds="model")
    # The record holds the places as they are resolved in this model.
    places: str | list[str] = option(identity=False)
    pooling: Pooling = "last"
    substring: str | None = option(None, identity=False)
    span_column: str | None = option(None, identity=False)
    values_dtype: Dtype = "auto"
    shard_rows: int = option(1024, least=1, most=MOST_ROWS)
    append: bool = option(False, identity=False)
    repair: bool = option(False, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "values_dtype", SHORT_DTYPES.get(self.values_dtype, self.values_dtype))
        if self.append and self.num_shards is not None:
            raise ValueError("rows are added to a whole store; leave out --append, or --shard-index and --num-shards")
        if (self.over == "span") != (self.substring is not None or self.span_column is not None):
            raise ValueError("--over span and one of --substring and --span-column go together")

    def request(self, layers: int) -> Capture:
        """What to read from a model of so many layers."""
        places = expand_places(self.places, layers)
        return Capture(places, self.pooling, self.over, self.values_dtype, self.chat)
