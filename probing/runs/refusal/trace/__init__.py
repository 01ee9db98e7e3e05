"""``probing refusal trace``: its options and the function that runs it."""

from probing.runs.refusal.trace.config import TraceConfig as TraceConfig
from probing.runs.refusal.trace.job import run as run
