"""What happened inside an open-weight language model: numbers from its hidden states that can be trusted.

Every public name is imported when it is first used, so that ``import probing`` costs nothing. The names and their
modules stand in ``__init__.pyi`` alone, where type checkers and editors read them too.
"""

import ast
import importlib
import pkgutil
from typing import Any


def _read_places() -> dict[str, str]:
    """The module of every public name."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_PLACES = _read_places()
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'probing' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
