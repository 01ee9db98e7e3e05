"""The files of a tokenizer in a folder, as far as they can be judged without loading it."""

import json
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FILES = ("chat_template*", "additional_chat_templates", "tekken*", "tokenizer.model.v*")
"""Where a chat template may be besides ``tokenizer_config.json``; some kinds of tokenizers bring one along."""


def brings_tokenizer(path_or_id: str | Path) -> bool:
    """Whether a checkpoint has a tokenizer of its own; a hub id is believed to."""
    folder = Path(path_or_id).expanduser()
    return not folder.is_dir() or any((folder / name).exists() for name in TOKENIZER_FILES)


def lacks_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder has no chat template; False where only loading it could tell."""
    if not brings_tokenizer(folder) or not folder.is_dir():
        return False
    if any(next(folder.glob(pattern), None) is not None for pattern in TEMPLATE_FILES):
        return False
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and not settings.get("chat_template") and "auto_map" not in settings
