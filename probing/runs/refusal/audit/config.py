"""Options of ``probing refusal audit``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import DrawOptions, TwoModelOptions, option
from probing.runs.refusal.common.options import KindPromptOptions

WRITERS_FILE = "writers.parquet"
PROMPTS_FILE = "prompts.parquet"
DRIFT_FILE = "drift.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class AuditConfig(TwoModelOptions, KindPromptOptions, DrawOptions):
    """Say what an edit or a fine-tune did to the weights: was one direction removed, and from how many writers.

    The weights of everything that writes to the residual stream are compared, one tensor at a time. Beside them stand
    how far the refusal direction itself moved, and how much both models refuse harmful and harmless prompts. Writes
    writers.parquet, drift.parquet, prompts.parquet and summary.json.

    Args:
        policy: folder or hub id of the model after an edit or training, or "bundled-displaced"; an adapter's folder is
            put onto the reference and merged.
        direction: file of a direction of one of the models, or folder that holds direction.safetensors, along which the
            changes are measured; by default the one that the changes have in common.
        shown: number of writers that are listed, those with the most of the direction left first.
    """

    policy: str = option(identity=False)
    direction: Path | None = option(None, identity=False)
    shown: int = option(10, least=1, most=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        empty = [name for name in ("reference", "policy") if not getattr(self, name).strip()]
        if empty:
            raise ValueError(f"{empty[0]} is empty; name a folder or a hub id")
