"""``probing filter``: its options and the function that runs it."""

from probing.runs.filter.config import FilterConfig as FilterConfig
from probing.runs.filter.job import run as run
