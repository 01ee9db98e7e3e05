"""Options of ``probing status``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class StatusConfig(Options):
    """Say how far runs are: rows and tokens a second, time left, failures by status, of the whole and of each worker.

    Leaves with status 0 if every run is finished or goes on, 1 if one died, 2 if a folder holds no run. Nothing is
    written, and a running job is not disturbed.

    Args:
        folders: output folders of commands; also folders of states, which lie within those of other runs as well.
    """

    folders: list[Path] = option(positional=True, identity=False)
