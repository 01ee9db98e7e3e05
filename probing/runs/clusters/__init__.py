"""``probing clusters``: its options and the function that runs it."""

from probing.runs.clusters.config import ClustersConfig as ClustersConfig
from probing.runs.clusters.job import run as run
