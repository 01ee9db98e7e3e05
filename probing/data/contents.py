"""Hash of a row without its id, by which a store recognises its content."""

import hashlib
from dataclasses import asdict

from probing.data.tables import canonical
from probing.types import LabelledPrompt


def content_of_row(prompt: LabelledPrompt) -> str:
    """Hash of a row without its id, by which a store recognises its content."""
    values = asdict(prompt)
    return hashlib.sha256(canonical([value for name, value in values.items() if name != "id"])).hexdigest()[:16]
