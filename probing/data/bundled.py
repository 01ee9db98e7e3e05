"""The small model and the data sets that come with the package, so that everything can be tried without a hub."""

from pathlib import Path
from typing import Literal

BundledName = Literal["pairs", "prompts", "statements", "rollouts"]
BUNDLED = "bundled"
BUNDLED_DISPLACED = "bundled-displaced"
_ROOT = Path(__file__).parents[1] / "bundled"


def bundled_model() -> Path:
    """Folder of the bundled chat model."""
    return _ROOT / "model"


def bundled_displaced() -> Path:
    """Folder of the same model after preference training on near-identical refusals, which took its refusals away."""
    return _ROOT / "displaced"


BUNDLED_MODELS = {BUNDLED: bundled_model, BUNDLED_DISPLACED: bundled_displaced}


def bundled_data(name: BundledName = "pairs") -> Path:
    """A bundled JSONL file: preference pairs of four kinds, labelled prompts, statements with their opposites, or
    sampled answers with rewards."""
    return _ROOT / "data" / f"{name}.jsonl"


def bundled_phrases() -> Path:
    """The phrases by which answers are judged."""
    return _ROOT / "refusal_phrases.txt"
