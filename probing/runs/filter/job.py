"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

from pathlib import Path

from probing.data.filters import check_rule
from probing.data.formats import check_ending
from probing.instruments.filtering import warn_of_direction
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.data import read_scores, stamp_files
from probing.store.files import check_output_name
from probing.types import Report


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    warn_of_direction(config.by, check_rule(**config.rule)[0])
    check_output_name(Path(config.out))
    if not config.makes_folder:
        check_ending(Path(config.out), config.format)
    frame, facts = read_scores(Path(config.scores).expanduser())
    before = stamp_files(config)
    from probing.runs.filter.stages import filter_rows

    return filter_rows(config, frame, facts, before)
