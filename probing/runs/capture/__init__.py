"""``probing capture``: its options and the function that runs it."""

from probing.runs.capture.config import CaptureConfig as CaptureConfig
from probing.runs.capture.job import run as run
