"""``probing refusal transfer``: its options and the function that runs it."""

from probing.runs.refusal.transfer.config import TransferConfig as TransferConfig
from probing.runs.refusal.transfer.job import run as run
