"""How the command line describes its options, and what it says of those that were given wrongly."""

import argparse
import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from probing.completion import Option
from probing.errors import UsageError

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
WANTED = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "true or false"}


class Parser(ArgumentParser):
    """A parser whose errors are one sentence each."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # The usual formatter of jsonargparse shows Python's types.
        super().__init__(*arguments, formatter_class=argparse.HelpFormatter, print_config="--print-%s", **options)
        self.hints: dict[str, Any] = {}
        self.options: tuple[str, ...] = ()

    def describe_options(self, hints: dict[str, Any]) -> None:
        """Remember the types of the options, by field name, for messages; and say plainly what printing them does."""
        self.hints = hints
        for action in self._actions:
            if "--print-config" in action.option_strings:
                action.metavar = "[=skip_default]"
                action.help = "print all options as YAML, with =skip_default those that were given, and leave"
        positional = {action.dest for action in self._actions if not action.option_strings}
        names = [name.replace("_", "-") for name in hints if name not in positional]
        self.options = tuple(
            f"--{name}" for name in (*names, "config", "json", "full", "quiet", "print-config", "help")
        )

    def list_options(self) -> list[Option]:
        """All options, with what a shell needs to complete them."""
        listed = []
        for action in self._actions:
            hint = self.hints.get(action.dest.replace("-", "_"))
            takes_value = hint is not bool and action.nargs != 0 and action.dest != "print_config"
            for name in action.option_strings:
                if name.startswith("--") and not name.endswith("+"):
                    listed.append(
                        Option(
                            name,
                            (action.help or "").replace("%%", "%"),
                            takes_value,
                            _choices(hint) if takes_value else (),
                        )
                    )
        return listed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as one sentence.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{explain(message, self.hints, self.options)}; see {self.prog} --help")


def explain(message: str, hints: dict[str, Any], options: Iterable[str]) -> str:
    """What a parser has to say, in words that name options as they are typed.

    Args:
        message: of argparse or jsonargparse.
        hints: types of the options, by field name.
        options: all options, as they are typed.
    """
    unknown = re.search(r"(?i)unrecognized arguments: (\S+)|option '([^']+)' is not accepted", message)
    if unknown is not None:
        typed = unknown[1] or f"--{unknown[2]}"
        return _explain_unknown(typed.partition("=")[0], options)
    required = re.search(r"arguments are required: (.*)", message)
    if required is not None:
        typed = {option.removeprefix("--").replace("-", "_"): option for option in options}
        names = [typed.get(name, name.upper()) for name in required[1].split(", ")]
        return f"{join_words(names)} {'is' if len(names) == 1 else 'are'} required"
    key = re.search(r'Parser key "([\w.-]+)"', message)
    if key is not None and key[1].replace("-", "_") in hints:
        name = key[1].replace("-", "_")
        value = re.search(r"(?:Given|Got) value: (.*)", message)
        given = f", not {value[1].strip()!r}" if value is not None else ""
        return f"{_typed(name)} must be {describe_type(hints[name])}{given}"
    missing = re.search(r"argument (--[\w-]+)(?:/\S+)?: expected (?:one|at least one) argument", message)
    if missing is not None:
        return f"{missing[1]} needs a value"
    ignored = re.search(r"argument (--[\w-]+)(?:/(--[\w-]+))?: ignored explicit argument '(.*)'", message)
    if ignored is not None:
        return f"{ignored[1]} takes no value (it is switched off by {ignored[2] or 'leaving it out'})"
    return _name_options(" ".join(message.split()), hints)


def suggest(word: str, known: Iterable[str]) -> str:
    """``(did you mean X?)``, or nothing where no known word is close."""
    # Hyphens that all options begin with would make any two of them alike.
    bare = {name.lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1)
    return f" (did you mean {bare[close[0]]}?)" if close else ""


def join_words(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that an option takes; none where it takes others too."""
    kinds = _kinds(hint)
    return tuple(map(str, typing.get_args(kinds[0]))) if typing.get_origin(kinds[0]) is Literal else ()


def describe_type(hint: Any) -> str:
    """The values that an option takes, in words."""
    kinds = _kinds(hint)
    words = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            words.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
        elif typing.get_origin(kind) is not list:
            words.append(WANTED.get(kind, str(kind)))
    return " or ".join(words) or "a list"


def metavar_of(hint: Any) -> str | None:
    """What stands for the value of an option in its help."""
    kinds = _kinds(hint)
    # A path that may end in a slash is taken as text.
    kind = Path if Path in kinds else kinds[0]
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    return METAVARS.get(kind)


def describe_default(default: object) -> str:
    """What follows the description of an option; nothing where its text says what happens without it."""
    return "" if default is None or default == "" else f" (default: {default})"


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return [hint]


def _name_options(message: str, hints: dict[str, Any]) -> str:
    """A message in which the names of fields are those of options."""
    # Where options exclude each other, also a word such as "below" is the name of one.
    plain = [name for name in hints if "_" in name or re.match("give (exactly|at most) one of ", message)]
    message = re.sub(rf"\b({'|'.join(plain)})\b", lambda found: _typed(found[1]), message) if plain else message
    first = re.split(r" must | is ", message)[0]
    return _typed(first) + message[len(first) :] if first in hints else message


def _explain_unknown(typed: str, options: Iterable[str]) -> str:
    if not typed.startswith("-"):
        return f"'{typed}' belongs to no option"
    return f"there is no option {typed}{suggest(typed, options)}"


def _typed(name: str) -> str:
    return name if name.startswith("-") else f"--{name.replace('_', '-')}"
