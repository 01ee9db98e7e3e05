"""What a word is: letters and digits, with the marks that cling to them (accents, vowel signs, joiners).

Signs that connect words (hyphens, apostrophes, underscores) are looked at with two aims. To replace a word, it has to
stand alone for certain: any such sign beside it makes it part of something else (``whole_words``). To cut a text, no
word may be cut in two: such a sign connects only where it stands between two letters or digits (``starts_word``).
Where words are merely counted, or texts compared, they are what white space separates (``spaced_words``).
"""

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""The zero-width signs that keep two characters apart or make them one."""
APOSTROPHES_AND_HYPHENS = "'’-\u2010\u2011"
CONNECTORS = "'’._-"


def spaced_words(text: str) -> list[str]:
    """The pieces of a text that white space separates."""
    return text.split()


def collapse_spaces(text: str) -> str:
    """The text with every run of white space as one space, for comparisons."""
    return " ".join(spaced_words(text))


def whole_words(text: str, word: str, ignore_case: bool = True) -> list[tuple[int, int]]:
    """Spans in which a word stands alone: the first character of each, and one past the last."""
    pattern = re.compile(re.escape(word), re.IGNORECASE if ignore_case else 0)
    places, at = [], 0
    while match := pattern.search(text, at):
        start, stop = match.span()
        alone = not _extends_word(text[start - 1 : start]) and not _extends_word(text[stop : stop + 1])
        places += [(start, stop)] if alone else []
        at = stop if alone else start + 1
    return places


def _extends_word(character: str) -> bool:
    """Whether a character (or none, at an end of the text) makes a word longer that it stands beside."""
    if not character:
        return False
    return character.isalnum() or character == "_" or character in APOSTROPHES_AND_HYPHENS or _is_mark(character)


def _is_mark(character: str) -> bool:
    """Whether a character is a combining mark (accent, vowel sign, variation selector) or a joiner."""
    return unicodedata.category(character).startswith("M") or character in JOINERS


def starts_word(text: str, at: int) -> bool:
    """Whether something is left from ``at`` on, and no word or sign is cut in two there."""
    if not text[at:].strip() or _belongs_to_previous(text[at]) or text[at - 1] in JOINERS:
        return False
    return not (_is_in_word(text, at - 1) and _is_in_word(text, at))


def _belongs_to_previous(character: str) -> bool:
    """Whether a character belongs to the one before it: marks, and modifiers such as skin tones."""
    return _is_mark(character) or unicodedata.category(character) == "Sk"


def _is_in_word(text: str, index: int) -> bool:
    """Whether a character is inside a word: letters and digits of scripts with spaces, their marks, and connectors."""
    character = text[index]
    if character in CONNECTORS:
        return 0 < index < len(text) - 1 and text[index - 1].isalnum() and text[index + 1].isalnum()
    if _belongs_to_previous(character):
        return True
    # An ideograph is a word of its own.
    return character.isalnum() and unicodedata.east_asian_width(character) not in "WF"
