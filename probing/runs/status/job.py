"""The job ``probing status``: how far runs are, read from their folders."""

from probing.runs.status.config import StatusConfig
from probing.runs.status.data import read_status
from probing.types import Report


def run(config: StatusConfig) -> Report:
    """Look into every folder; whatever is wrong with one is part of the answer."""
    found = [read_status(folder.expanduser()) for folder in config.folders]
    # Imported only here, since pandas comes with it.
    from probing.runs.status.tables import report_status

    return report_status(found)
