"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

from pathlib import Path

from probing.data.filters import check_rule
from probing.data.formats import check_ending
from probing.instruments.filtering import warn_of_direction
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.data import check_same_runs, read_scores, stamp_files
from probing.store.files import check_output_name
from probing.types import Report


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it; or compare rules.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    if config.compare is not None:
        runs = [read_scores(folder) for folder in config.folders]
        check_same_runs(runs)
        from probing.runs.filter.stages import compare_on_rows

        return compare_on_rows(config, config.compare, runs)
    warn_of_direction(config.column, check_rule(**config.rule)[0])
    check_output_name(Path(config.out or ""))
    if not config.makes_folder:
        check_ending(config.target, config.format)
    [scores] = map(read_scores, config.folders)
    before = stamp_files(config)
    from probing.runs.filter.stages import filter_rows

    return filter_rows(config, scores, before)
