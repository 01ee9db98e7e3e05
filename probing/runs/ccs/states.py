"""States of the yes and no forms of statements: captured, or from a store; joined to their pairs by id."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.data.contents import content_of_row
from probing.data.forms import FORMS, append_word, make_forms, make_text_forms, replace_word
from probing.data.tables import Table
from probing.errors import DataInvalid, SourceMismatch
from probing.models.layers import find_stack
from probing.models.load import LanguageModel
from probing.runs.capture.within import capture_states
from probing.runs.ccs.config import FORMS_FILE, CCSConfig
from probing.runs.common.inputs import STATES
from probing.store.activations import ActivationStore, row_problems
from probing.store.files import new_file
from probing.tokens.prompts import tokenize_prompts
from probing.types import Capture, ContrastPair, LabelledPrompt, Over, Pooling, Problem

MARKER, DISTRACTOR = "marker:", "distractor:"


SHOWN_TOKENS = 3
SAME_EVERYWHERE = (
    "the yes and the no form have the very same state in all {pairs} pairs; what is read is {token}: does it come "
    "before the answer?"
)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variants:
    """Variants of the pairs that are read besides the pairs themselves.

    Attributes:
        marker: pairs with a word replaced, by the index of the pair: its statement and opposite then.
        distracted: whether each pair has the distractor appended.
    """

    marker: Mapping[int, tuple[str, str]]
    distracted: NDArray[np.bool_]

    @classmethod
    def of(cls, config: CCSConfig, pairs: Sequence[ContrastPair], groups: Sequence[int]) -> "Variants":
        """Choose the pairs; half of the groups that share texts get the distractor, so that texts agree."""
        replacement, replaced = config.replacement(), {}
        if replacement is not None:
            rewritten = {index: replace_word(pair, *replacement) for index, pair in enumerate(pairs)}
            replaced = {index: texts for index, texts in rewritten.items() if texts is not None}
        names = np.unique(np.asarray(groups))
        chosen = np.random.default_rng([config.seed, 6]).permutation(names)[: len(names) // 2]
        has = np.isin(np.asarray(groups), chosen) if config.distractor else np.zeros(len(pairs), dtype=bool)
        return cls(replaced, has)


def all_forms(config: CCSConfig, pairs: Sequence[ContrastPair], variants: Variants) -> list[LabelledPrompt]:
    """Every text that is read: four a pair, and four more for every variant."""
    template = config.form()
    prompts = make_forms(pairs, template)
    for index, texts in variants.marker.items():
        prompts += make_text_forms(pairs[index].id, texts, template, MARKER)
    for pair in (pair for pair, has in zip(pairs, variants.distracted, strict=True) if has):
        texts = (append_word(pair.statement, config.distractor), append_word(pair.opposite, config.distractor))
        prompts += make_text_forms(pair.id, texts, template, DISTRACTOR)
    return prompts


@dataclass(frozen=True, eq=False)
class FormStates:
    """States of all forms in a store.

    Attributes:
        store: store that holds the states.
        index: row of each id that has states.
        known: ids of all forms in the store, also of those without states.
        problems: problems of the forms without states, by id.
        token: description of the tokens that were read.
    """

    store: ActivationStore
    index: Mapping[str, int]
    known: frozenset[str]
    problems: Mapping[str, Problem]
    token: str

    def has(self, ids: Sequence[str], variant: str) -> bool:
        """Whether the store has these pairs' forms of a variant at all."""
        return all(f"{id}#{variant}{form}" in self.known for id in ids for form in FORMS)

    def problem(self, id: str, variant: str = "") -> Problem | None:
        """Problem of a pair: that of its first form without states; None if all forms have states."""
        for form in FORMS:
            problem = self.problems.get(f"{id}#{variant}{form}")
            if problem is not None:
                return Problem(id, problem.status, f"{variant}{form}: {problem.detail}")
        return None

    def of(self, states: Tensor, ids: Sequence[str], variant: str | Sequence[str] = "") -> Tensor:
        """[4 pair width] of these pairs, from the states [row width] of a place; a variant, or one for each pair."""
        names = [variant] * len(ids) if isinstance(variant, str) else variant
        rows = [[self.index[f"{id}#{name}{form}"] for id, name in zip(ids, names, strict=True)] for form in FORMS]
        return states[torch.tensor(rows, dtype=torch.long)]


def read_forms(
    folder: Path,
    config: CCSConfig,
    table: Table,
    pairs: Sequence[ContrastPair],
    variants: Variants,
    source: LanguageModel | ActivationStore,
) -> FormStates:
    """Capture every form into ``folder``, or find them in the store that was named.

    Raises:
        SourceMismatch: the store has other texts, or lacks some.
        ProbingError: see ``probing.runs.capture.run``.
    """
    prompts = all_forms(config, pairs, variants)
    if isinstance(source, ActivationStore):
        request = source.facts["request"]
        return _join_forms(
            source, prompts, f"the {request['pooling']} token ({request['over']}), as the store was captured"
        )
    assert config.model is not None
    causal = find_stack(source).causal
    pooling, over = _choose_token(config, causal)
    token = _describe_tokens(config, source, prompts[: 4 * len(pairs)], pooling, over, causal)
    store = capture_states(
        folder / STATES,
        config,
        config.model,
        table,
        prompts,
        source,
        data=str(folder / FORMS_FILE),
        pooling=pooling,
        over=over,
    )
    _write_forms(folder / FORMS_FILE, prompts)
    return _join_forms(store, prompts, token)


def _choose_token(config: CCSConfig, causal: bool) -> tuple[Pooling, Over]:
    """Choose the token whose state is read."""
    chosen = ("last" if causal else "first") if config.token == "auto" else config.token
    pooling: Pooling = "last" if chosen == "last" else "first" if chosen == "first" else "mean"
    if pooling == "first":
        # An encoder's own first token stands for the whole text.
        return pooling, "text"
    return pooling, "response" if config.chat and pooling == "last" else "content"


def _describe_tokens(
    config: CCSConfig,
    model: LanguageModel,
    prompts: Sequence[LabelledPrompt],
    pooling: Pooling,
    over: Over,
    causal: bool,
) -> str:
    """Describe which tokens are read, with the tokens themselves.

    Raises:
        DataInvalid: the text that the model has seen at the token that is read is the same in the yes and in the no
            form of all pairs.
    """
    tokenizer = model.tokenizer
    request = Capture(["final_norm"], pooling, over)  # type: ignore[list-item]
    rows = tokenize_prompts(tokenizer, prompts, request, eos=False, max_length=config.max_length)
    counted = [row for row in rows if row.problem is None]
    if pooling == "mean":
        return f"the mean of all tokens ({over})"
    at = {row.id: row.ids[row.stop - 1 if pooling == "last" else row.start] for row in counted}
    sides = []
    for side, number in (("yes", "1"), ("no", "0")):
        counts = Counter(token for id, token in at.items() if id.endswith(number))
        shown = ", ".join(f"{tokenizer.decode([token])!r}" for token, _ in counts.most_common(SHOWN_TOKENS))
        sides.append(f"{shown or 'none'} in {side} forms")
    told = f"the {pooling} token ({over}): {'; '.join(sides)}"
    # At a token a decoder has seen the text before it, and an encoder the whole text.
    seen = {
        row.id: row.ids[: row.start + 1 if pooling == "first" else row.stop] if causal else row.ids for row in counted
    }
    if seen and all(seen[id] == seen.get(f"{id[:-1]}0") for id in seen if id.endswith("1")):
        raise DataInvalid(SAME_EVERYWHERE.format(pairs=len(prompts) // 4, token=told))
    return told


def _write_forms(path: Path, prompts: Sequence[LabelledPrompt]) -> None:
    with new_file(path) as temporary:
        rows = ({name: value for name, value in asdict(prompt).items() if value is not None} for prompt in prompts)
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _join_forms(store: ActivationStore, prompts: Sequence[LabelledPrompt], token: str) -> FormStates:
    """Join the store's rows to the forms, checked to be the texts that the data and the options give."""
    rows = store.rows
    content = dict(zip(rows["id"], rows["content"], strict=True))
    for prompt in prompts:
        variant = ":" in prompt.id.rpartition("#")[2]
        if prompt.id not in content:
            if variant:
                # This control was not captured.
                continue
            raise SourceMismatch(
                f"{store.path}: has no states of '{prompt.id}'; capture the {FORMS_FILE} that 'probing ccs --model' "
                f"writes for these data and this template"
            )
        if content[prompt.id] != content_of_row(prompt):
            raise SourceMismatch(
                f"{store.path}: '{prompt.id}' is another text there; the data, --template, --answers, --chat, "
                f"--replace-word, --distractor and --seed must be those that it was captured with"
            )
    index = {id: row for row, id in enumerate(store.ids)}
    problems = {problem.id: problem for problem in row_problems(rows)}
    return FormStates(store, index, frozenset(content), problems, token)


def check_contrast(forms: FormStates, pairs: Sequence[ContrastPair], same: NDArray[np.bool_]) -> None:
    """Warn which pairs have the same states in both forms; raise if all have.

    Raises:
        DataInvalid: no pair's yes form differs from its no form.
    """
    if same.all():
        raise DataInvalid(SAME_EVERYWHERE.format(pairs=len(pairs), token=forms.token))
    if same.any():
        log.warning(
            "%d of %d pairs have the same state in the yes and in the no form and are left out; the first: '%s'. "
            "What is read is %s",
            int(same.sum()),
            len(pairs),
            pairs[int(same.argmax())].id,
            forms.token,
        )
