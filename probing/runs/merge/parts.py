"""The likelihoods at every step of training, of all shards of an array."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probing.runs.displacement.config import COURSE_FILE
from probing.runs.displacement.stages import Steps
from probing.runs.displacement.tables import sort_course
from probing.runs.merge.data import Array, Member


def join_steps(array: Array, ids: Sequence[str]) -> Steps:
    """What one run would say of the checkpoints.

    A checkpoint is left out of a shard also where it gives no pair of that shard a likelihood. If it gives one to a
    pair of another shard, one run would keep the checkpoint and leave the pairs of that shard out of the course.

    Args:
        array: the shards.
        ids: ids of all pairs, in order.
    """
    members = array.with_rows
    in_all = set.intersection(*map(_list_broken, members))
    broken = [entry for entry in members[0].record["broken_steps"] if entry["step"] in in_all]
    policy = members[0].record.get("policy_step")
    if policy is None:
        return Steps(None, broken, None)
    courses = [_read_course(member, whole=_list_broken(member) == in_all) for member in members]
    return Steps(policy, broken, sort_course(pd.concat(courses, ignore_index=True), ids))


def _list_broken(member: Member) -> set[Any]:
    return {entry["step"] for entry in member.record["broken_steps"]}


def _read_course(member: Member, whole: bool) -> pd.DataFrame:
    course = pd.read_parquet(member.path / COURSE_FILE)
    return course if whole else course[:0]
