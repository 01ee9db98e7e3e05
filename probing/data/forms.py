"""The yes and no forms of statements that a model reads, and their variants: a word replaced, a word appended."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from probing.data.prompts import SIDE_MARK
from probing.data.words import whole_words
from probing.types import ContrastPair, LabelledPrompt

FORMS = ("A1", "A0", "N1", "N0")
"""The four texts of a pair: the statement with a yes and with a no, its opposite with a yes and with a no."""
PLAIN_TEXT = "{statement} {answer}."
CHAT_TEXT = "{answer}"
CHAT_QUESTION = "Is this true? {statement}"


@dataclass(frozen=True)
class Template:
    """A template that puts a yes or a no behind a statement.

    Attributes:
        text: template with ``{statement}`` and ``{answer}``, each once; the yes itself may stand in place of
            ``{answer}``. With ``chat`` it is what the assistant says, without the statement: by default the answer
            alone.
        answers: the yes and the no.
        question: the user's message in a conversation (``chat``), with ``{statement}`` once; by default
            ``CHAT_QUESTION``.
        chat: whether to make conversations.

    Raises:
        ValueError: a placeholder is missing, unknown or there twice; an answer is empty or both are the same; a
            question without ``chat``.
    """

    text: str = PLAIN_TEXT
    answers: tuple[str, str] = ("Yes", "No")
    question: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", _check_answers(self.answers))
        text, question = self.text, self.question
        if self.chat:
            text = CHAT_TEXT if text == PLAIN_TEXT else text
            question = CHAT_QUESTION if question is None else question
            _check_placeholders(question, "question", statement=1, answer=0)
        elif question is not None:
            raise ValueError("a question is asked in a chat only; say chat as well")
        text = _insert_answer(text, self.answers[0])
        _check_placeholders(text, "template", statement=0 if self.chat else 1, answer=1)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "question", question)

    def form(self, pair_id: str, statement: str, answer_index: int, name: str) -> LabelledPrompt:
        """One statement with one answer (0: the yes, 1: the no), as ``PAIR#NAME``."""
        # The statement is filled in last, since it may itself contain a placeholder.
        said = self.text.replace("{answer}", self.answers[answer_index])
        id = f"{pair_id}{SIDE_MARK}{name}"
        if self.question is None:
            return LabelledPrompt(id, said.replace("{statement}", statement))
        asked = [{"role": "user", "content": self.question.replace("{statement}", statement)}]
        return LabelledPrompt(id, asked, response=[{"role": "assistant", "content": said}])


def _check_answers(answers: Sequence[str]) -> tuple[str, str]:
    good = not isinstance(answers, str) and len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    if not good or not all(answer.strip() for answer in answers) or answers[0].strip() == answers[1].strip():
        raise ValueError(f"answers must be two different texts, a yes and a no, not {answers!r:.60}")
    for answer in answers:
        if re.search(r"\{\w+\}", answer):
            raise ValueError(f"an answer is put in as it stands, without a placeholder: {answer!r:.60}")
    return answers[0], answers[1]


def _insert_answer(text: str, yes: str) -> str:
    """The template with ``{answer}`` in place of a yes that is written out, if there is exactly one."""
    if "{answer}" in text:
        return text
    spans = whole_words(text.replace("{statement}", " " * len("{statement}")), yes, ignore_case=False)
    if len(spans) != 1:
        raise ValueError(f"write {{answer}} where the answer belongs in the template {text!r:.60}, which has none")
    start, stop = spans[0]
    return f"{text[:start]}{{answer}}{text[stop:]}"


def _check_placeholders(text: str, name: str, **expected: int) -> None:
    for word in re.findall(r"\{(\w+)\}", text):
        if word not in expected:
            raise ValueError(f"the {name} {text!r:.60} holds {{{word}}}; there are {{statement}} and {{answer}} only")
    for word, times in expected.items():
        if text.count(f"{{{word}}}") != times:
            must = f"must hold {{{word}}} exactly once" if times else f"must not hold {{{word}}}"
            raise ValueError(f"the {name} {text!r:.60} {must}")


def make_forms(pairs: Sequence[ContrastPair], template: Template, variant: str = "") -> list[LabelledPrompt]:
    """The four forms of every pair, in the order of ``FORMS``, as ``PAIR#VARIANTFORM``. See ``make_text_forms``."""
    return [
        form for pair in pairs for form in make_text_forms(pair.id, (pair.statement, pair.opposite), template, variant)
    ]


def make_text_forms(
    pair_id: str, texts: tuple[str, str], template: Template, variant: str = ""
) -> list[LabelledPrompt]:
    """The four forms of a statement and its opposite, which may have become the same text.

    Args:
        pair_id: the first part of the ids.
        texts: the statement and its opposite.
        template: puts each together with a yes and a no.
        variant: prefix of the name of the form, for instance "marker:", to tell changed texts apart.

    Raises:
        ValueError: the variant holds the sign that ends the id of a pair.
    """
    if SIDE_MARK in variant:
        raise ValueError(f"the name of a variant must not hold '{SIDE_MARK}': {variant!r:.40}")
    return [template.form(pair_id, texts[at // 2], at % 2, variant + form) for at, form in enumerate(FORMS)]


def replace_word(pair: ContrastPair, old: str, new: str) -> tuple[str, str] | None:
    """Both texts with ``old`` replaced by another word, or None if neither contains it.

    Only whole words count, in any case: letters, digits, marks (accents and vowel signs), underscores, apostrophes and
    hyphens belong to a word, so "nothing", "cannot", "don't" and "not-so" hold no "not", and neither does "not" in
    single quotes. The new word is put in as it is written. The two texts may become the same.

    Raises:
        ValueError: the old word is empty.
    """
    if not old.strip():
        raise ValueError("the word to replace is empty")
    places = (whole_words(pair.statement, old), whole_words(pair.opposite, old))
    if not any(places):
        return None
    return _replace_spans(pair.statement, places[0], new), _replace_spans(pair.opposite, places[1], new)


def _replace_spans(text: str, places: Sequence[tuple[int, int]], new: str) -> str:
    for start, stop in reversed(places):
        text = text[:start] + new + text[stop:]
    return text


def parse_replacement(text: str) -> tuple[str, str]:
    """The two words of ``OLD=NEW``, as in ``not=ttt``.

    Raises:
        ValueError: the text is written otherwise, or the words are the same.
    """
    old, equals, new = (part.strip() for part in text.partition("="))
    if not equals or not old or not new or "=" in new:
        raise ValueError(f"a replacement is written OLD=NEW, as in not=ttt, not {text!r:.60}")
    if old.casefold() == new.casefold():
        raise ValueError(f"'{old}' is to be replaced by itself")
    return old, new


def append_word(statement: str, word: str) -> str:
    """The statement with an unrelated word after it.

    Raises:
        ValueError: the word is empty.
    """
    if not word.strip():
        raise ValueError("the word to append is empty")
    return f"{statement.rstrip()} {word.strip()}"
