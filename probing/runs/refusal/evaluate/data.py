"""What ``probing refusal evaluate`` reads before the model: prompts, phrases, and a text for the cross-entropy."""

from dataclasses import dataclass
from pathlib import Path

from probing.data.bundled import bundled_phrases
from probing.data.phrases import read_phrases
from probing.directions.judge_text import Phrases
from probing.errors import DataInvalid
from probing.runs.refusal.common.prompts import Kinds, read_kinds
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.store.files import file_sha256


@dataclass(frozen=True)
class EvaluationData:
    """Everything that is read from files before the model.

    Attributes:
        kinds: the prompts.
        phrases: phrases by which answers are judged.
        text: text for the cross-entropy; None where none was given.
        hashes: of the files, by option.
    """

    kinds: Kinds
    phrases: Phrases
    text: str | None
    hashes: dict[str, str]


def read_data(config: EvaluateConfig) -> EvaluationData:
    """The prompts, the phrases and the text that the options name.

    Raises:
        DataInvalid: a file cannot be read, or holds too little.
    """
    kinds = read_kinds(config)
    phrases = read_phrases(config.phrases)
    hashes = {"phrases_sha256": file_sha256(config.phrases.expanduser() if config.phrases else bundled_phrases())}
    text = None
    if config.text is not None:
        path = config.text.expanduser()
        text = _read_text(path)
        hashes["text_sha256"] = file_sha256(path)
    return EvaluationData(kinds, phrases, text, hashes)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path}: no text in UTF-8 ({error})") from error
    if not text.strip():
        raise DataInvalid(f"{path}: is empty; give a text as --text")
    return text
