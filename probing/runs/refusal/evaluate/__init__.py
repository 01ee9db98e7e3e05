"""``probing refusal evaluate``: its options and the function that runs it."""

from probing.runs.refusal.evaluate.config import EvaluateConfig as EvaluateConfig
from probing.runs.refusal.evaluate.job import run as run
