"""``probing report``: its options and the function that runs it."""

from probing.runs.report.config import ReportConfig as ReportConfig
from probing.runs.report.job import run as run
