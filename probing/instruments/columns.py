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
EXACT = "_exact"
"""Ends the names of the columns that are taken from gradients of the model itself."""
RATE_COLUMNS = ("displacement_rate", f"displacement_rate{EXACT}")
REJECTED_SQUARE = ("rejected_rate", "entanglement", "gradient_ratio", "regime")
"""Columns that need the product of the rejected response's gradient with itself."""
_REGIME = (*REJECTED_SQUARE[:3], "least_sft_weight", "regime")
GROUPS = {f"regime{end}": tuple(f"{name}{end}" for name in ("displacement_rate", *_REGIME)) for end in ("", EXACT)}
"""What training on a pair does to both of its responses: the columns that a word stands for, which is one of them."""
REGIME_COLUMNS = tuple(name for group in GROUPS.values() for name in group if name not in RATE_COLUMNS)
INFLUENCE_COLUMNS = (
    "influence",
    "joint_rate",
    "joint_rejected_rate",
    "pilot_influence",
    "pilot_change",
    "pilot_rejected_change",
)
"""What training on all pairs does, to a target and to each pair; see ``instruments/influence.py``."""
KEEP_HIGHEST = (*RATE_COLUMNS, "influence", "joint_rate", "pilot_influence", "pilot_change")
"""Scores that are low for the pairs whose chosen responses training pushes down."""
KEEP_LOWEST = (
    *SCORE_COLUMNS,
    *(f"{name}{end}" for end in ("", EXACT) for name in ("entanglement", "gradient_ratio", "least_sft_weight")),
)
"""Scores that are high for these pairs."""
REF_LOGPS = {"ref_chosen_logps": "chosen_logprob", "ref_rejected_logps": "rejected_logprob"}
"""Columns in which TRL's DPOTrainer keeps the log-probabilities of its reference model, and ours that hold the same."""
COLUMNS = ("id", "status", *TOKEN_COLUMNS, *SCORE_COLUMNS)
"""Columns that are scored unless others are named."""
ALL_COLUMNS = (*COLUMNS, *LIKELIHOOD_COLUMNS, *RATE_COLUMNS, *REGIME_COLUMNS)
ALL = "all"
"""Stands for every column that one pass gives: all but the rates and regimes."""


def known_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table of scores, in their order: those named, ids and tokens; "all" for those of one pass.

    A word of ``GROUPS`` stands for all columns of the group.

    Raises:
        UsageError: there is no such column, or none is named.
    """
    unknown = [name for name in columns if name not in (*ALL_COLUMNS, ALL)]
    if unknown or not columns:
        said = f"unknown columns {', '.join(unknown)}" if unknown else "columns is empty"
        raise UsageError(f"{said}; there are {', '.join(ALL_COLUMNS)}, and {ALL}")
    wanted = {"id", "status", *TOKEN_COLUMNS, *expand_groups(columns)}
    wanted |= {*COLUMNS, *LIKELIHOOD_COLUMNS} if ALL in columns else set()
    return tuple(name for name in ALL_COLUMNS if name in wanted)


def expand_groups(columns: Sequence[str]) -> list[str]:
    """The names with all columns of a group in place of its word; each once, in the order given."""
    return list(dict.fromkeys(name for word in columns for name in GROUPS.get(word, (word,))))


def split_columns(columns: str | None) -> tuple[str, ...]:
    """Known columns from names separated by commas; the usual ones for None."""
    return COLUMNS if columns is None else known_columns([name.strip() for name in columns.split(",") if name.strip()])
