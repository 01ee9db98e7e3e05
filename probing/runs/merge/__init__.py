"""``probing merge``: its options and the function that runs it."""

from probing.runs.merge.config import MergeConfig as MergeConfig
from probing.runs.merge.job import run as run
