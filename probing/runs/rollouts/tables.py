"""Tables of what one step on each group does to its correct responses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probing.report.group_rates import estimate_groups, sum_up_groups
from probing.report.layout import shorten
from probing.report.pulls import pull_tables
from probing.report.tables import ID_WIDTH, TEXT_WIDTH, counts, estimates, to_line
from probing.runs.rollouts.config import RolloutsConfig
from probing.runs.rollouts.data import PromptUnits
from probing.types import RolloutGroup

LISTED_GROUPS = 5
VERDICTS = (0.0, 1.0)
"""Rewards of which nobody doubts which one says that a response is correct."""


def make_tables(
    frame: pd.DataFrame,
    tokens: Path,
    groups: Sequence[RolloutGroup],
    config: RolloutsConfig,
    facts: Mapping[str, Any],
) -> dict[str, pd.DataFrame]:
    """Tables by title, in the order in which they are shown.

    Args:
        frame: one row a response.
        tokens: file with one row a token of the incorrect responses.
        groups: the groups of the dataset.
        config: the options.
        facts: record of the run.
    """
    found = sum_up_groups(frame)
    units = PromptUnits.find(groups).number(found["id"].tolist())
    shared = len(set(units.tolist()))
    over = "groups" if shared == len(found) else f"{shared} prompts, some of which have several groups"
    tables = {
        "Groups by status": counts(facts["rows_by_status"], "status", "groups"),
        f"What one step of {config.advantage} does, with 95 % intervals over {over} (rates in nats per unit of step)": (
            estimates(estimate_groups(frame, found, units), "n")
        ),
        **pull_tables(tokens, "ln p of the correct responses"),
        "Groups whose correct responses fall most": _list_falling(found, groups),
    }
    notes = _note_rewards(frame, config)
    return tables | ({"Notes": pd.DataFrame({"note": notes})} if notes else {})


def _list_falling(found: pd.DataFrame, groups: Sequence[RolloutGroup]) -> pd.DataFrame:
    """The groups with the lowest mean rates below 0, with the prompt and the first correct response."""
    lowest = found[found["rate"] < 0].sort_values(["rate", "id"]).head(LISTED_GROUPS)
    known = {group.id: group for group in groups if group.id in set(lowest["id"])}
    prompts = [to_line(known[name].prompt) for name in lowest["id"]]
    return pd.DataFrame(
        {
            "rate": lowest["rate"],
            "rate per token": lowest["rate_per_token"],
            "group": [shorten(to_line(name), ID_WIDTH) for name in lowest["id"]],
            "correct": lowest["correct"],
            "incorrect": lowest["incorrect"],
            "prompt": [shorten(prompt, TEXT_WIDTH, end=True) for prompt in prompts],
        }
    )


def _note_rewards(frame: pd.DataFrame, config: RolloutsConfig) -> list[str]:
    """A note where rewards are no plain verdicts and the default of the threshold was taken."""
    rewards = frame["reward"].dropna()
    others = int((~rewards.isin(VERDICTS)).sum())
    if not others or config.correct_above != 0.5:
        return []
    return [
        f"{others:,} of {len(rewards):,} rewards are neither 0 nor 1: a response counts as correct if its reward is "
        f"above 0.5; name another threshold with --correct-above"
    ]
