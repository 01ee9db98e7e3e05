"""The job ``probing refusal audit``: what an edit or a fine-tune did to the weights of a model."""

from pathlib import Path

from probing.models.checkpoints import is_adapter
from probing.runs.common.inputs import check_models
from probing.runs.refusal.audit.config import AuditConfig
from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.common.prompts import read_kinds
from probing.store.manifest import claim
from probing.types import Report


def run(config: AuditConfig) -> Report:
    """Audit the change into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, [config.reference], config.reference_revision)
    if not is_adapter(config.policy):
        check_models(config, [config.policy], config.policy_revision)
    kinds = read_kinds(config)
    with claim(Path(config.out).expanduser(), "refusal audit") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.audit.stages import audit_into

        return audit_into(folder, config, kinds)
