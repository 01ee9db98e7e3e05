"""The job ``probing refusal export``: an edit written out, loaded back and proved."""

import re
from pathlib import Path

from probing.runs.common.inputs import check_models
from probing.runs.refusal.export.config import ExportConfig
from probing.store.directions import open_direction
from probing.store.files import check_free, new_together, remove_leftovers
from probing.types import Report


def run(config: ExportConfig) -> Report:
    """Write the export into ``config.out``, which appears complete and proved, or not at all.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written then.
    """
    out = Path(config.out).expanduser()
    check_free(out)
    check_models(config, [config.model], config.revision)
    direction = open_direction(config.direction)
    if out.parent.is_dir():
        remove_leftovers(out.parent, re.escape(out.name))
    with new_together([out], folders=True, check=lambda: check_free(out)) as (folder,):
        # Imported only here, so that errors in the options are reported without waiting for torch to load.
        from probing.runs.refusal.export.stages import export_into

        report = export_into(folder, config, direction)
    return Report(report.tables, {**report.facts, "wrote": [str(path) for path in sorted(out.iterdir())]})
