"""What a store remembers of a row, to know it again."""

import hashlib
from dataclasses import asdict

from probing.data.tables import canonical
from probing.types import LabelledPrompt


def content_of_row(prompt: LabelledPrompt) -> str:
    """What a store remembers of a row, to know it again."""
    values = asdict(prompt)
    return hashlib.sha256(canonical([value for name, value in values.items() if name != "id"])).hexdigest()[:16]
