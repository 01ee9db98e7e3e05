"""``probing refusal audit``: its options and the function that runs it."""

from probing.runs.refusal.audit.config import AuditConfig as AuditConfig
from probing.runs.refusal.audit.job import run as run
