"""The columns of a table of pair scores."""

from collections.abc import Sequence

from probing.errors import UsageError

TOKEN_COLUMNS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
SCORE_COLUMNS = ("ches", "ches_normalized", "last_state_similarity", "edit_similarity")
LIKELIHOOD_COLUMNS = (
    "chosen_logprob",
    "rejected_logprob",
    "chosen_logprob_per_token",
    "rejected_logprob_per_token",
    "ranking_correct",
    "ranking_difficulty",
    "chosen_mean_rank",
    "rejected_mean_rank",
    "chosen_rank_surprisal",
    "rejected_rank_surprisal",
)
RATE_COLUMNS = ("displacement_rate", "displacement_rate_exact")
INFLUENCE_COLUMNS = ("influence", "joint_rate", "joint_rejected_rate", "pilot_change", "pilot_rejected_change")
"""What training on all pairs does, to a target and to each pair; see ``instruments/influence.py``. Keep the highest."""
REF_LOGPS = {"ref_chosen_logps": "chosen_logprob", "ref_rejected_logps": "rejected_logprob"}
"""Columns in which TRL's DPOTrainer keeps the log-probabilities of its reference model, and ours that hold the same."""
COLUMNS = ("id", "status", *TOKEN_COLUMNS, *SCORE_COLUMNS)
"""Columns that are scored unless others are named."""
ALL_COLUMNS = (*COLUMNS, *LIKELIHOOD_COLUMNS, *RATE_COLUMNS)
ALL = "all"
"""Stands for every column that one pass gives: all but the rates."""


def known_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table of scores, in their order: those named, ids and tokens; "all" for those of one pass.

    Raises:
        UsageError: there is no such column, or none is named.
    """
    unknown = [name for name in columns if name not in (*ALL_COLUMNS, ALL)]
    if unknown or not columns:
        said = f"unknown columns {', '.join(unknown)}" if unknown else "columns is empty"
        raise UsageError(f"{said}; there are {', '.join(ALL_COLUMNS)}, and {ALL}")
    wanted = {"id", "status", *TOKEN_COLUMNS, *columns} | ({*COLUMNS, *LIKELIHOOD_COLUMNS} if ALL in columns else set())
    return tuple(name for name in ALL_COLUMNS if name in wanted)


def split_columns(columns: str | None) -> tuple[str, ...]:
    """Known columns from names separated by commas; the usual ones for None."""
    return COLUMNS if columns is None else known_columns([name.strip() for name in columns.split(",") if name.strip()])
