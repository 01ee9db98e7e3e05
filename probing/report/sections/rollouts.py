"""What a run of ``probing rollouts`` says: whether a step lowers the correct responses, and which tokens pull."""

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.group_rates import draw_group_rates, estimate_groups, sum_up_groups
from probing.report.parts import RunData, RunReport, Section
from probing.report.pulls import list_pulling_tokens
from probing.report.sections.pairs import TOKENS, take_pulls
from probing.report.sections.shared import (
    Thresholds,
    collect,
    describe_missing,
    find_file,
    make_rows,
    name_rows,
    name_section,
    read_option,
    say_estimate,
    say_rows,
)
from probing.report.tables import estimates
from probing.statistics.groups import number_values
from probing.types import Estimate

QUESTION = "Do correct responses fall with the incorrect ones?"
ROLLOUTS = "rollouts.parquet"
COLUMNS = {
    "group": "group",
    "status": "status",
    "reward": "reward",
    "correct": "correct",
    "rate": "rate of ln p, nats per unit of step",
    "rate_per_token": "the same per token",
    "advantage": "advantage",
    "logprob": "ln p, nats",
    "response_tokens": "tokens of the response",
    "prompt_tokens": "tokens of the prompt",
}
ABOUT = "One row a response; the tokens of incorrect ones have their pulls on the correct ones of the group."


def describe_rollouts(run: RunData, thresholds: Thresholds) -> RunReport:
    """Rates of correct responses under one step on their group, and the responses with the pulls of their tokens."""
    section = name_section(run, "rollouts")
    frame = find_file(run, ROLLOUTS, "id group status correct rate rate_per_token")
    if frame is None:
        return describe_missing(run, "rollouts", QUESTION, ROLLOUTS)
    groups = sum_up_groups(frame)
    measured = dict(estimate_groups(frame, groups, _find_units(run, frame, groups))) if len(groups) else {}
    table = make_rows(run, section, f"All {len(frame):,} responses", frame, COLUMNS, ABOUT, first="rate")
    tables = {"Under one step, with 95 % intervals": estimates(list(measured.items()), "n")} if measured else {}
    if TOKENS in run.files:
        table = replace(table, tokens={"response": take_pulls(run.files[TOKENS], frame["id"].tolist())})
        tables["Tokens that pull most, summed over the dataset"] = list_pulling_tokens(run.files[TOKENS])
    part = Section(
        name=section,
        question=QUESTION,
        run=run.label,
        says=[*_say(run, measured), *say_rows(run)],
        figures=_draw(groups),
        tables=tables,
        rows=name_rows(section),
    )
    checks = [judge("share_falling", run.label, section, share, thresholds) for share in list(measured.values())[:1]]
    return RunReport([part], [*collect(checks), *judge_rows(run, section, thresholds)], [table])


def _find_units(run: RunData, frame: pd.DataFrame, groups: pd.DataFrame) -> NDArray[np.int64] | None:
    """A number for each group, equal for groups of the same prompt; None where prompts are not known."""
    first = frame.drop_duplicates("group").set_index("group")["id"]
    prompts = [run.texts.get(str(first[name]), {}).get("prompt") for name in groups["id"]]
    if None in prompts:
        return None
    return np.array(number_values(" ".join(str(prompt).split()) for prompt in prompts), dtype=np.int64)


def _draw(groups: pd.DataFrame) -> list[Figure]:
    return draw_group_rates(groups) if len(groups) else []


def _say(run: RunData, measured: dict[str, Estimate]) -> list[str]:
    if not measured:
        return ["No group has a number: see the statuses of the rows."]
    share, among, *_ = measured.values()
    said = [
        f"One small step on a group alone, with the weights of {read_option(run, 'advantage') or 'grpo'}, would lower "
        f"its correct responses in the mean in {say_estimate(share)} of {share.n:,} groups; of the correct responses "
        f"{say_estimate(among)} fall.",
        "The rates are exact for a model whose states and output head are free parameters, and say nothing of steps on "
        "many groups together.",
        "A token of an incorrect response with a pull above 0 is one whose lowering lowers ln p of the correct "
        "responses of its group. Open a response to see which of its tokens pull.",
    ]
    above = read_option(run, "correct_above")
    return [*said, *([] if above is None else [f"A response is correct where its reward is above {above:g}."])]
