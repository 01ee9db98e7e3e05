"""``probing status``: its options and the function that runs it."""

from probing.runs.status.config import StatusConfig as StatusConfig
from probing.runs.status.job import run as run
