"""What can be known to be wrong of the chat models of a run before torch is imported."""

from collections.abc import Sequence

from probing.runs.common.inputs import check_models, check_templates
from probing.runs.common.options import DeviceOptions

WHY = "refusal is read at the end of a prompt that the chat template writes"


def check_chat_models(
    config: DeviceOptions, names: Sequence[str], revision: str | None = None, places: str | Sequence[str] | None = None
) -> None:
    """Raise for a device, models or layers that there are not, and for models without a chat template.

    Args, Raises: see ``check_models``.
    """
    check_models(config, names, revision, places)
    check_templates(names, WHY)
