"""``probing refusal extract``: its options and the function that runs it."""

from probing.runs.refusal.extract.config import ExtractConfig as ExtractConfig
from probing.runs.refusal.extract.job import run as run
