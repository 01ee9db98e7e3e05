"""The two models of an audit, and the direction that is given."""

from probing.errors import SourceMismatch, UsageError
from probing.instruments.pair_changes import check_same_vocabulary
from probing.models.checkpoints import is_adapter
from probing.models.language_model import LanguageModel
from probing.runs.common.models import load_model
from probing.runs.common.record import dtype_name
from probing.runs.refusal.audit.config import AuditConfig
from probing.store.directions import check_model, open_direction
from probing.tokens.tokenizers import brings_tokenizer
from probing.types import Direction


def load_both(config: AuditConfig) -> tuple[LanguageModel, LanguageModel]:
    """Reference and policy, both in memory, in one dtype.

    Raises:
        SourceMismatch: the vocabularies differ. ModelInvalid, UsageError: a model cannot be loaded.
    """
    reference = load_model(config.reference, config, config.reference_revision)
    if is_adapter(config.policy):
        if config.policy_revision is not None:
            raise UsageError(f"{config.policy}: is a folder, which has no revision; leave out --policy-revision")
        return reference, reference.adapted(config.policy)
    tokenizer = None if brings_tokenizer(config.policy) else reference.tokenizer
    dtype = dtype_name(reference.dtype) if config.dtype == "auto" else config.dtype
    policy = load_model(config.policy, config, config.policy_revision, dtype, tokenizer)
    check_same_vocabulary(reference, policy)
    return reference, policy


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
