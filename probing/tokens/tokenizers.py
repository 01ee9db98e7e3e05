"""The tokenizer of an adapter: that in its folder, or the model's with the chat template of the folder."""

import copy
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from probing.errors import ModelInvalid
from probing.tokens.tokenizer_files import TEMPLATE_FILE, brings_tokenizer


def read_tokenizer(folder: Path, otherwise: Any, config: Any) -> Any:
    """The tokenizer of an adapter's folder, or another one with the chat template of the folder, or just that one.

    Args:
        folder: folder of the adapter.
        otherwise: tokenizer of the model below the adapter.
        config: config of that model, which tells the kind of tokenizer where the folder does not.

    Raises:
        ModelInvalid: the tokenizer in the folder cannot be read.
    """
    folder = folder.expanduser()
    if brings_tokenizer(folder):
        try:
            return AutoTokenizer.from_pretrained(str(folder), config=config)
        except (AttributeError, OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
            raise ModelInvalid(
                f"{folder}: the tokenizer in it cannot be read ({str(error).splitlines()[0]})"
            ) from error
    template = folder / TEMPLATE_FILE
    if not template.is_file():
        return otherwise
    tokenizer = copy.deepcopy(otherwise)
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer
