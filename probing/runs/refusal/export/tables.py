"""Tables of ``probing refusal export``."""

import pandas as pd

from probing.runs.refusal.export.config import ExportConfig
from probing.runs.refusal.export.models import Exported


def make_tables(config: ExportConfig, exported: Exported) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown."""
    files = pd.DataFrame([{"file": each.file, "tensors": 1, "changed": each.changed} for each in exported.tensors])
    notes = [*exported.notes, "what was written was loaded back and proved before the folder appeared"]
    return {
        "Proved": pd.DataFrame({"what was found, edited and proved": [exported.proof]}),
        "Tensors": files.groupby("file", as_index=False).sum(),
        "Notes": pd.DataFrame({"note": notes}),
    }
