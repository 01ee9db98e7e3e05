"""What a model said before training, kept with the run so that a resumed run compares with the same."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from probing.errors import SourceMismatch, StoreCorrupt
from probing.tokens.pairs import TokenizedPair
from probing.training.pair_set import PairValues

PAIRS_FILE = "baseline.parquet"
MASS_FILE = "baseline-tokens.npy"
FACTS_FILE = "baseline.json"


def hash_tokens(tokenized: Sequence[TokenizedPair]) -> str:
    """A hash of ids and tokens of all pairs, in order: it differs for other pairs, another tokenizer or template."""
    digest = hashlib.sha256()
    for pair in tokenized:
        digest.update(json.dumps([pair.id, pair.prompt_tokens, pair.chosen, pair.rejected]).encode())
    return digest.hexdigest()


def save_baseline(folder: Path, values: PairValues, tokenized: Sequence[TokenizedPair]) -> None:
    """Keep the values of a model before training in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    values.frame.to_parquet(folder / PAIRS_FILE, index=False)
    np.save(folder / MASS_FILE, values.mass)
    (folder / FACTS_FILE).write_text(json.dumps({"pairs_sha256": hash_tokens(tokenized)}), encoding="utf-8")


def open_baseline(folder: Path, tokenized: Sequence[TokenizedPair]) -> PairValues:
    """The values that ``save_baseline`` kept.

    Raises:
        SourceMismatch: there are none, or they are of other pairs, or of another tokenizer or chat template.
        StoreCorrupt: a file is damaged.
    """
    if not (folder / FACTS_FILE).is_file():
        raise SourceMismatch(
            f"{folder}: holds no baseline, which a resumed run compares with; resume with the output folder of the run "
            f"that began it, or give a reference model"
        )
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        frame, mass = pd.read_parquet(folder / PAIRS_FILE), np.load(folder / MASS_FILE, allow_pickle=False)
        known = facts["pairs_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{folder}: the baseline is damaged ({error}); give a reference model in its place"
        ) from error
    if known != hash_tokens(tokenized):
        raise SourceMismatch(
            f"{folder}: the baseline there is of other pairs, or of another tokenizer or chat template; give the pairs "
            f"with which the run began"
        )
    return PairValues(frame, mass)
