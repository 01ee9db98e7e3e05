"""The groups that are measured, and what identifies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.rollouts import content_sha256
from probing.data.tables import Table, canonical
from probing.data.words import collapse_spaces
from probing.runs.common.inputs import check_templates
from probing.runs.rollouts.config import RolloutsConfig
from probing.statistics.groups import number_values
from probing.types import RolloutGroup


def check_group_templates(config: RolloutsConfig, table: Table, groups: Sequence[RolloutGroup]) -> None:
    """Raise ``ModelInvalid`` where a group is a conversation and the model has no chat template."""
    first = next((index for index, group in enumerate(groups) if group.conversational), None)
    if first is not None:
        name = f"{table.where(first)} (id '{groups[first].id}')"
        check_templates([config.model], f"{name}: the group is made of messages")


@dataclass(frozen=True)
class PromptUnits:
    """Groups of the same prompt, which intervals count as one.

    Attributes:
        of: number of the prompt of each group, by its id.
    """

    of: dict[str, int]

    @classmethod
    def find(cls, groups: Sequence[RolloutGroup]) -> "PromptUnits":
        """The prompts of some groups, every run of white space as one space."""
        keys = (
            collapse_spaces(group.prompt) if isinstance(group.prompt, str) else canonical(group.prompt).decode()
            for group in groups
        )
        return cls(dict(zip([group.id for group in groups], number_values(keys), strict=True)))

    def number(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The number of the prompt of each of these groups."""
        return np.array([self.of[name] for name in ids], dtype=np.int64)


def describe_data(table: Table, groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """Facts of the data for the record."""
    return table.facts() | {"rows": len(groups), "groups_sha256": content_sha256(groups)}
