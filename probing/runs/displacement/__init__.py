"""``probing displacement``: its options and the function that runs it."""

from probing.runs.displacement.config import DisplacementConfig as DisplacementConfig
from probing.runs.displacement.job import run as run
