"""``probing score``: its options and the function that runs it."""

from probing.runs.score.config import ScoreConfig as ScoreConfig
from probing.runs.score.job import run as run
