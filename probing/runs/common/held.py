"""Models and rows in memory, under the names that stand in the options of a run."""

from typing import Any

DATA_IN_MEMORY = "data in memory"
"""What a record names in place of a file."""
NOT_FILES = {"-": "standard input", DATA_IN_MEMORY: "memory"}
"""Names of data that cannot be read once more, and where these came from."""


class InMemory(str):
    """The name of an object in memory, with the object itself: it stands where an option has the name of a file.

    Messages and records hold the name, and are made as those of files are.

    Attributes:
        held: a ``LanguageModel``, or a ``Table``.
    """

    __slots__ = ("held",)

    held: Any

    def __new__(cls, name: str, held: Any) -> "InMemory":
        """The name, with the object."""
        named = super().__new__(cls, name)
        named.held = held
        return named

    def __deepcopy__(self, memo: dict[int, Any]) -> str:
        """The name alone: copies of options are made for records, and the object stays the caller's."""
        return str(self)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """The name alone, where options are sent to another process."""
        return str, (str(self),)
