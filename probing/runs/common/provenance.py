"""Where a result comes from, for a reader: the data, the models and the versions, as far as is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.data.tables import Table
from probing.runs.common.options import DatasetOptions
from probing.runs.common.versions import DISTRIBUTION, version_of

RECORDED_MODELS = ("model", "reference", "policy")
"""Entries of the record of a scoring that tell of models."""
RECORDED_VERSIONS = ("torch", "transformers", "tokenizers")


def name_source(source: str) -> str:
    """The name of a file or a folder without where it lies; the id of a dataset of the hub."""
    return Path(source).name if Path(source).expanduser().exists() else source


def list_data(config: DatasetOptions, table: Table) -> dict[str, object]:
    """Facts of the dataset by what they are."""
    whole = table.numbers is None and table.format != "datasets"
    told = {
        "revision": config.data_revision,
        "subset": config.subset,
        "split": config.split,
        "limit": config.limit,
        "sample": config.sample,
        "rows": len(table.rows),
        f"sha256 of {'the file' if whole else 'these rows'}": table.sha256,
    }
    return {name: value for name, value in told.items() if value is not None}


def list_models(facts: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Facts of the models that a record tells of; they are not believed, they are shown."""
    names = {
        "model": "model",
        "revision": "revision",
        "weights_sha256": "sha256 of its weights",
        "adapter_sha256": "sha256 of its adapter",
        "dtype": "dtype",
    }
    told = {kind: facts[kind] for kind in RECORDED_MODELS if isinstance(facts.get(kind), Mapping)}
    return {
        kind: {name: known[key] for key, name in names.items() if known.get(key) is not None}
        for kind, known in told.items()
    }


def list_versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Versions of this package and of what writes, and of what made the scores."""
    own = {"probing": version_of(DISTRIBUTION), "datasets": version_of("datasets"), "pyarrow": version_of("pyarrow")}
    identity = facts.get("identity")
    known = identity.get("versions") if isinstance(identity, Mapping) else None
    recorded = known if isinstance(known, Mapping) else {}
    return own | {name: str(recorded[name]) for name in RECORDED_VERSIONS if name in recorded}
