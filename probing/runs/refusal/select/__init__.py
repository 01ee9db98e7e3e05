"""``probing refusal select``: its options and the function that runs it."""

from probing.runs.refusal.select.config import SelectConfig as SelectConfig
from probing.runs.refusal.select.job import run as run
