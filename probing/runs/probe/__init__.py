"""``probing probe``: its options and the function that runs it."""

from probing.runs.probe.config import ProbeConfig as ProbeConfig
from probing.runs.probe.job import run as run
