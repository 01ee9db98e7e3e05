"""``probing filter`` after its scores: the rows, what is told of them, the files."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from probing.data.columns import column_values
from probing.data.pair_units import pair_units
from probing.data.pairs import content_sha256, list_pair_ids
from probing.instruments.filter_rules import compare_rules, parse_rules
from probing.instruments.filtering import choose_by_scores
from probing.runs.common.datasets import read_pairs
from probing.runs.common.scored import check_same_pairs
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.data import Scores, as_scored, check_unchanged
from probing.runs.filter.files import write_outputs
from probing.runs.filter.results import draw_page, make_card
from probing.runs.filter.rows import Filtered, join_scores, order_scores
from probing.runs.filter.tables import make_comparison, make_report
from probing.store.files import file_sha256
from probing.types import Report


def filter_rows(config: FilterConfig, scores: Scores, before: Mapping[str, tuple[int, int]], named: str) -> Report:
    """Keep and drop the rows of the dataset by their scores, and write both.

    Args:
        config: the options.
        scores: the scores.
        before: size and time of the last change of every file of the data; see ``data.stamp_files``.
        named: name of the output, as it is shown.
    """
    with contextlib.ExitStack() as held:
        reading = as_scored(config, scores.used)
        table, pairs = read_pairs(reading, held)
        check_same_pairs(content_sha256(pairs), scores.facts, ", ".join(config.sources), scores.path)
        ids = list_pair_ids(pairs)
        found = order_scores(ids, scores, config.column, held)
        kept = choose_by_scores(ids, found.status, found.values, config.bad, config.rule, table)
        page = draw_page(config, found.values, kept, scores.used)
        report = make_report(found, kept, config.column)
        filtered = Filtered(table, pairs, kept, found, page)
        card = make_card(config, reading, filtered, scores.facts, report, named) if config.makes_folder else None
        wrote = write_outputs(config, filtered, card, lambda: check_unchanged(config, before))
    hashes = {str(path): file_sha256(path) for path in wrote if path.is_file()}
    return dataclasses.replace(report, facts={**report.facts, "wrote": [str(path) for path in wrote], "sha256": hashes})


def compare_on_rows(config: FilterConfig, rules: str, runs: Sequence[Scores]) -> Report:
    """Compare rules over the pairs of the dataset; nothing is written.

    Args:
        config: the options.
        rules: the rules, as they were written.
        runs: the scores.
    """
    # A bare table does not say how the data were read.
    used = next((run.used for run in runs if run.used), {})
    table, pairs = read_pairs(as_scored(config, used))
    sha256 = content_sha256(pairs)
    for run in runs:
        check_same_pairs(sha256, run.facts, ", ".join(config.sources), run.path)
    groups = None if config.group_column is None else list(map(str, column_values(table, config.group_column)))
    joined = join_scores(list_pair_ids(pairs), runs)
    compared = compare_rules(joined.frame, parse_rules(rules, joined.frame), config.keep or 0.0)
    return make_comparison(joined, compared, pair_units(pairs)[compared.rows], groups, config.group_column)
