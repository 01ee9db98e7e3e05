"""``probing filter`` after its scores: the rows, what is told of them, the files."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probing.instruments.filtering import choose_kept, find_scores
from probing.runs.common.datasets import read_pair_ids
from probing.runs.common.scored import check_same_pairs
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.data import as_scored, check_unchanged
from probing.runs.filter.files import write_outputs
from probing.runs.filter.results import draw_page, make_card
from probing.runs.filter.rows import Filtered, list_side_columns
from probing.runs.filter.tables import make_report
from probing.store.files import file_sha256
from probing.types import Report

if TYPE_CHECKING:
    import pandas as pd


def filter_rows(
    config: FilterConfig, frame: "pd.DataFrame", facts: Mapping[str, Any], before: Mapping[str, tuple[int, int]]
) -> Report:
    """Keep and drop the rows of the dataset by their scores, and write both.

    Args:
        config: the options.
        frame: the scores.
        facts: record of the scoring.
        before: size and time of the last change of every file of the data; see ``data.stamp_files``.
    """
    used, makes_folder = facts.get("config", {}), config.makes_folder
    with contextlib.ExitStack() as held:
        reading = as_scored(config, used)
        table, ids, sha256 = read_pair_ids(reading, held)
        check_same_pairs(sha256, facts, ", ".join(config.sources), config.scores)
        kept = choose_kept(ids, frame, config.by, config.bad, config.rule, table)
        rows = find_scores(ids, frame, config.by)
        page = draw_page(config, frame, rows[np.array(kept)], used)
        report = make_report(frame, ids, kept, config.by)
        dropped = rows[~np.array(kept)]
        filtered = Filtered(table, ids, kept, frame.iloc[rows], list_side_columns(dropped, frame), page)
        card = make_card(config, reading, filtered, facts, report) if makes_folder else None
        wrote = write_outputs(config, filtered, card, lambda: check_unchanged(config, before))
    hashes = {str(path): file_sha256(path) for path in wrote if path.is_file()}
    return dataclasses.replace(report, facts={**report.facts, "wrote": [str(path) for path in wrote], "sha256": hashes})
