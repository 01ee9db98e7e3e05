"""``probing refusal export`` after its options: the export, its card, its record."""

from pathlib import Path

from probing.runs.refusal.export.config import ExportConfig
from probing.runs.refusal.export.files import gather_facts, write_card, write_record
from probing.runs.refusal.export.models import export_edit
from probing.runs.refusal.export.tables import make_tables
from probing.types import Direction, Report


def export_into(folder: Path, config: ExportConfig, direction: Direction) -> Report:
    """Write the export and what is told of it into an empty folder.

    Raises:
        ProbingError: see ``export_edit``.
    """
    exported = export_edit(folder, config, direction)
    write_card(folder, config, direction, exported)
    facts = gather_facts(config, direction, exported)
    write_record(folder, facts)
    return Report(make_tables(config, exported), facts)
