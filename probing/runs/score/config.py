"""Options of ``probing score``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.instruments.columns import split_columns
from probing.runs.common.options import check_at_least

SCORES_FILE = "scores.parquet"


@dataclass(frozen=True)
class ScoreConfig:
    """Score every pair of a preference dataset by CHES and its relatives.

    Args:
        model: folder or hub id of a causal language model, or "bundled" for the small one in this package.
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled".
        out: folder for scores.parquet and run.json; an interrupted run in it is continued.
        split: which split, where the data have several.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        revision: branch, tag or commit of a hub model.
        dtype: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        device: "auto", "cpu", "cuda", "cuda:1", ...; "balanced" spreads the layers over all cards and the host.
        batch_tokens: padded tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; longer pairs are marked, not cut. By default the model's limit.
        eos: whether the end of turn belongs to the response, as in training.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoint brings with it.
        columns: names separated by commas. By default CHES and its relatives; "all" adds everything about likelihood,
            which one pass gives as well; displacement_rate and displacement_rate_exact cost more and are named.
        rate_parameters: over which displacement_rate_exact takes gradients: "all", "head" or "last:K".
        shard_pairs: pairs that are scored together and saved; an interrupted run loses at most one shard.
    """

    model: str
    data: str
    out: Path
    split: str | None = None
    id_column: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    eos: bool = True
    compile: bool = False
    trust_remote_code: bool = False
    columns: str | None = None
    rate_parameters: str = "all"
    shard_pairs: int = 512

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=2, shard_pairs=1)
        split_columns(self.columns)
