"""A file of options is looked at before its YAML is made into values, so that nothing in it can exhaust the machine."""

from pathlib import Path

import yaml  # type: ignore[import-untyped]

from probing.errors import UsageError

MOST_BYTES = 1 << 20
DEEPEST = 8
"""Levels of nesting; options have two."""
MOST_BRACKETS = 1000
"""Opening brackets in one argument; the parser of YAML ends the process at some ten thousand."""


def check_argument(argument: str) -> None:
    """Raise ``UsageError`` for an argument that could not be read as a value."""
    if argument.count("[") + argument.count("{") > MOST_BRACKETS:
        raise UsageError(f"'{argument[:40]}…': holds more than {MOST_BRACKETS} opening brackets, and is no value")


def check_config_file(name: str) -> None:
    """Raise unless this is a YAML file of options: small, flat, with every key once, without anchors.

    Raises:
        UsageError: it is something else; names the file, the line and what is wrong.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"--config {name}: no such file")
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"--config {name}: is larger than {MOST_BYTES >> 20} MiB, and is no file of options")
    try:
        _check_events(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"the file given as --config is no text: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"--config {name}{line}: broken YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--config {name}: {error}") from error
    except OSError as error:
        raise UsageError(f"--config {name}: cannot be read ({error.strerror})") from error


def _check_events(text: str) -> None:
    """Go through the YAML piece by piece: the parser of pieces needs no memory for what it has passed."""
    # None stands for an open list.
    opened: list[_Mapping | None] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if not isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionEndEvent):
                opened.pop()
            continue
        line = event.start_mark.line + 1
        if event.anchor is not None:
            raise ValueError(f"line {line}: anchors and references are not taken; write the value out")
        if not opened and not isinstance(event, yaml.MappingStartEvent):
            raise ValueError(f"line {line}: expected options, one a line, as in 'batch_tokens: 64'")
        if opened and opened[-1] is not None:
            opened[-1].take(event, line)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Mapping() if isinstance(event, yaml.MappingStartEvent) else None)
        if len(opened) > DEEPEST:
            raise ValueError(f"line {line}: nested too deeply")


class _Mapping:
    """An open mapping: its keys so far, and whether a key comes next."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._key_is_next = True

    def take(self, event: yaml.NodeEvent, line: int) -> None:
        """The next key or value."""
        if self._key_is_next:
            if not isinstance(event, yaml.ScalarEvent):
                raise ValueError(f"line {line}: a key must be the name of an option")
            key = event.value.replace("-", "_")
            if key in self._keys:
                raise ValueError(f"line {line}: '{event.value[:60]}' stands there twice")
            self._keys.add(key)
        self._key_is_next = not self._key_is_next
