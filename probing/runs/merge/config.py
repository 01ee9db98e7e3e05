"""Options of ``probing merge``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Options):
    """Join the finished shards of an array of jobs into the run that one job would have made.

    The shards are runs of score, displacement, rollouts or capture with --shard-index and --num-shards. They stay as
    they are; states are linked where the file system allows it, and copied otherwise.

    Args:
        folders: output folders of all shards of one run, in any order.
        out: folder for the whole run, which the same command without the options of the shard takes for its own.
        data: dataset of the shards, where it lies elsewhere now; may be repeated.
    """

    folders: list[Path] = option(positional=True, identity=False)
    out: Path = option(identity=False)
    data: str | list[str] | None = option(None, identity=False, repeatable=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folders:
            raise ValueError("give the output folders of all shards")
