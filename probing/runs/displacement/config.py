"""Options of ``probing displacement``."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.errors import UsageError
from probing.instruments.columns import RATE_COLUMNS, SCORE_COLUMNS
from probing.runs.common.options import check_at_least

PAIRS_FILE = "displacement.parquet"
TOKENS_FILE = "tokens.parquet"
COURSE_FILE = "course.parquet"
COURSE_PLOT = "course.html"
PREDICTORS = (*SCORE_COLUMNS, *RATE_COLUMNS)


@dataclass(frozen=True)
class DisplacementConfig:
    """Compare two models on preference pairs: which responses lost probability, and to which tokens it went.

    Args:
        reference: folder or hub id of the model before training, or "bundled".
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled".
        out: folder for displacement.parquet, tokens.parquet and run.json; an interrupted run in it is continued.
        policy: folder or hub id of the model after training; an adapter's folder is put onto the base weights of the
            reference, which are then in memory once. "bundled-displaced" is such a copy of the bundled model.
        adapter: the same, for an adapter.
        reference_adapter: adapter that makes the reference; the policy's adapter is put onto the same weights.
        steps: folder of checkpoints whose names end in a number (checkpoint-500), in place of a policy: all are
            measured, the last one is the policy, and the course over training is drawn.
        split: which split, where the data have several.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        group_column: column by whose values the summary is repeated.
        rater_share_column: column with the share of raters (0 to 1) who preferred the chosen response, for the
            idealised ranking accuracy.
        beta: of the DPO loss, for the idealised ranking accuracy.
        predictors: scores of the reference to rank against the change, separated by commas: ches, ches_normalized,
            last_state_similarity, edit_similarity, displacement_rate, displacement_rate_exact.
        rate_parameters: over which displacement_rate_exact takes gradients: "all", "head" or "last:K".
        top: tokens to name at each position of a response that gained most, and that lost most (or, where fewer did,
            gained and lost least); 0 leaves out tokens.parquet.
        reference_revision: branch, tag or commit of a hub model.
        policy_revision: the same for the policy.
        dtype: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        device: "auto", "cpu", "cuda", "cuda:1", ...; "balanced" spreads the layers over all cards and the host.
        batch_tokens: padded tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; longer pairs are marked, not cut. By default the model's limit.
        eos: whether the end of turn belongs to the response, as in training.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoints bring with them.
        shard_pairs: pairs that are compared together and saved; an interrupted run loses at most one shard.
    """

    reference: str
    data: str
    out: Path
    policy: str | None = None
    adapter: str | None = None
    reference_adapter: str | None = None
    steps: Path | None = None
    split: str | None = None
    id_column: str | None = None
    group_column: str | None = None
    rater_share_column: str | None = None
    beta: float = 0.1
    predictors: str = ",".join(SCORE_COLUMNS)
    rate_parameters: str = "all"
    top: int = 3
    reference_revision: str | None = None
    policy_revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    eos: bool = True
    compile: bool = False
    trust_remote_code: bool = False
    shard_pairs: int = 256

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=2, shard_pairs=1, top=0)
        empty = [name for name in ("reference", "policy", "adapter", "reference_adapter") if getattr(self, name) == ""]
        if empty:
            raise ValueError(f"{empty[0]} is empty; name a folder or a hub id")
        given = [name for name in ("policy", "adapter", "steps") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of policy, adapter and steps; given: {' and '.join(given) or 'none'}")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta is a positive number, not {self.beta}")
        self.predictor_names()

    def predictor_names(self) -> tuple[str, ...]:
        """The predictors, in the order of the table of scores."""
        names = [name.strip() for name in self.predictors.split(",") if name.strip()]
        unknown = [name for name in names if name not in PREDICTORS]
        if unknown:
            raise UsageError(f"unknown predictors {', '.join(unknown)}; there are {', '.join(PREDICTORS)}")
        return tuple(name for name in PREDICTORS if name in names)
