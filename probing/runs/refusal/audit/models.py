"""The two models of an audit, and the direction that is given."""

from probing.errors import SourceMismatch
from probing.models.language_model import LanguageModel
from probing.runs.common.models import load_against, load_model
from probing.runs.refusal.audit.config import AuditConfig
from probing.store.directions import check_model, open_direction
from probing.types import Direction


def load_both(config: AuditConfig) -> tuple[LanguageModel, LanguageModel]:
    """Reference and policy, both in memory, in one dtype.

    Raises:
        SourceMismatch: the vocabularies differ. ModelInvalid, UsageError: a model cannot be loaded.
    """
    reference = load_model(config.reference, config, config.reference_revision)
    return reference, load_against(reference, config.reference, config.policy, config, config.policy_revision)


def read_direction(config: AuditConfig, reference: LanguageModel, policy: LanguageModel) -> Direction | None:
    """The direction that is given, which has to be of one of the two models.

    Raises:
        SourceMismatch: it is of another model, or there is none in the file. StoreCorrupt: the file is damaged.
    """
    if config.direction is None:
        return None
    direction = open_direction(config.direction)
    width = int(reference.model.get_input_embeddings().weight.shape[1])
    try:
        check_model(direction, policy.source, width, policy.layers)
    except SourceMismatch:
        check_model(direction, reference.source, width, reference.layers)
    return direction
