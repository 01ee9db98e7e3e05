"""JSON from files that anybody may have written: of a sensible depth, and no key of an object twice."""

import json
from collections import Counter
from typing import Any

MOST_NESTED = 100
"""The deepest nesting of lists and objects that is read. Python's own limit, ten times that, differs by machine."""


def parse_json(text: str | bytes, deepest: int = MOST_NESTED) -> Any:
    """A JSON value.

    Args:
        text: JSON.
        deepest: levels of nesting that it may have.

    Raises:
        ValueError: it is no JSON, nested more deeply than that, or an object holds one key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_make_object)
    except RecursionError as error:
        raise ValueError(f"lists and objects are nested more than {deepest} deep") from error
    opened = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > deepest:
        _check_nesting(value, deepest)
    return value


def _make_object(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(entries)
    if len(made) < len(entries):
        [(twice, _)] = Counter(key for key, _ in entries).most_common(1)
        raise ValueError(f"the key '{twice:.40}' stands twice in one object")
    return made


def _check_nesting(value: Any, deepest: int) -> None:
    """Raise ``ValueError`` if lists and objects are nested too deeply to be worked on."""
    level, depth = [value], 0
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
        if depth > deepest:
            raise ValueError(f"lists and objects are nested more than {deepest} deep")
