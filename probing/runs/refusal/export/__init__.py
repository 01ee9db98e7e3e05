"""``probing refusal export``: its options and the function that runs it."""

from probing.runs.refusal.export.config import ExportConfig as ExportConfig
from probing.runs.refusal.export.job import run as run
