"""``probing ccs``: its options and the function that runs it."""

from probing.runs.ccs.config import CCSConfig as CCSConfig
from probing.runs.ccs.job import run as run
