"""Columns of the printed tables: a stable name of each, and which are given up first on a narrow terminal."""

import re
from collections.abc import Iterable

NAMES = {
    "accuracy (ESA)": "esa",
    "median |polar consistency|": "median_abs_polar_consistency",
    "contradiction": "contradiction_index",
    "without it 95 %": "silhouette_without_it_interval",
    "its low": "above_baseline_low",
    "its high": "above_baseline_high",
    "": "measure",
    "95 % interval": "interval",
    "95 % before": "before_interval",
    "95 % after": "after_interval",
    "95 % interval before": "before_interval",
    "95 % interval after": "after_interval",
    "95 % interval of added": "added_interval",
    "harmful before, 95 %": "harmful_before_interval",
    "harmful after, 95 %": "harmful_after_interval",
    "harmless before, 95 %": "harmless_before_interval",
    "harmless after, 95 %": "harmless_after_interval",
    "angle of 95 % of replicates": "angle",
    "what was found, edited and proved": "proof",
}
"""Stable names of columns whose printed name is no good one; that of any other is its printed name in snake case."""

# Counts, single quantiles and further metrics are given up before the estimate, its interval, p-values and baselines.
GIVEN_UP = {
    "quantiles_of_the_scores": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "quantiles_of_likelihoods": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "quantiles_of_displacement_rates": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "quantiles_of_entanglement": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "least_weight_of_an_sft_term": ("quantile_0 quantile_5", "quantile_25 quantile_75"),
    "quantiles_of_influence": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "quantiles_of_joint_rates": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "quantiles_of_what_the_pilot_changed": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "pairs_that_lower_the_target_most": ("prompt",),
    "pairs_that_lower_the_target_most_along_the_pilot": ("prompt",),
    "quantiles": ("quantile_5 quantile_95", "quantile_25 quantile_75"),
    "rules": ("low high",),
    "agreement_of_two_rules": ("jaccard", "both", "low high"),
    "most_alike_by_ches_normalized": ("prompt",),
    "least_alike_by_ches_normalized": ("prompt",),
    "chosen_responses_that_lost_most": ("prompt",),
    "where_their_probability_went": ("position",),
    "single_tokens_that_pull_most": ("position",),
    "by_group": (
        "spearman_edit_similarity",
        "spearman_last_state_similarity",
        "spearman_ches",
        "spearman_displacement_rate_exact",
        "rejected_change",
        "spearman_displacement_rate",
        "margin_change",
        "best_tenth_along_the_pilot worst_tenth_along_the_pilot",
        "joint_low joint_high",
        "influence_low influence_high",
        "pilot_change",
        "pilot_influence",
    ),
    "directions": ("part",),
    "course_over_training": ("pairs", "change_of_the_margin"),
    "probes": ("silhouette", "median_abs_polar_consistency", "auroc", "polar_consistency", "contradiction_index"),
    "ccs_there": ("pairings", "labels", "low high"),
    "by_place": (
        "cosine_to_the_other",
        "length",
        "angle",
        "weight",
        "dunn",
        "xie_beni",
        "calinski_harabasz",
        "davies_bouldin",
        "aqi",
        "lda lda_fresh",
        "mass_mean mass_mean_fresh",
        "mass_mean_accuracy",
        "vinc_accuracy",
        "crc_tpc_accuracy",
        "random_contradiction ccs_contradiction",
        "chosen chosen_by_logistic chosen_by_ccs",
        "aqi_size_free",
        "permuted_labels",
        "logistic_accuracy",
    ),
    "by_formulation": ("pairs",),
    "marker_control": ("pairs", "before after"),
    "distractor_test": ("cosine_with_the_word", "word_low word_high"),
    "auroc": ("rows", "place", "above_baseline_low above_baseline_high"),
    "held_out": (
        "aqi_size_free",
        "minus_the_first minus_the_first_interval",
        "corrected corrected_interval",
        "centres_p",
    ),
    "sets_of_rows": (
        "aqi_size_free",
        "silhouette_without_it silhouette_without_it_interval",
        "corrected corrected_interval",
        "place",
    ),
    "differences_of_corrected_values": ("aqi_size_free aqi_size_free_interval",),
    "places_where_some_rows_have_a_norm_far_above_the_others": ("aqi_size_free aqi_size_free_without", "rows"),
    "drift": ("mean_angle", "cka"),
    "prompts": ("read",),
    "candidates": ("cosmic",),
    "answers_by_what_they_do": (
        "harmful_before_interval harmless_before_interval",
        "harmful_after_interval harmless_after_interval",
    ),
    "log_odds_of_refusal_at_the_first_token": ("before_interval", "permuted_labels"),
    "how_far_harmless_answers_change": ("permuted_labels",),
    "by_category": ("before_interval", "after_interval"),
    "each_category_left_out_of_the_extraction": ("above_0_before above_0_after",),
    "auroc_of_held_out_prompts_by_their_projection": (
        "cosine_to_own",
        "map_of_permuted_prompts",
        "error_of_the_map",
    ),
    "change_of_the_mean_refusal_log_odds": ("interval added_interval",),
    "writers_by_kind": ("share_along_v", "effective_rank"),
    "writers_with_the_most_of_the_direction_left": ("share_along_v", "effective_rank"),
}
"""Columns by table, in the order in which they are left out; those of one entry together. Both by stable names."""


def name_columns(printed: Iterable[object]) -> dict[str, str]:
    """A name for every column of a table, in snake case, which does not vary with the data.

    What stands behind a comma is a value from the data ("conflict, harmful"), and is not in the name.

    Returns:
        Printed names by name. Where two columns would have one name, the second is numbered.
    """
    return number_names((_name_column(str(name)), str(name)) for name in printed)


def list_given_up(table: str, printed: Iterable[object]) -> list[list[str]]:
    """The columns of a table that may be left out, by printed name: one list after the other.

    Args:
        table: name of the table.
        printed: printed names of its columns.
    """
    named = name_columns(printed)
    groups = [[named[name] for name in group.split() if name in named] for group in GIVEN_UP.get(table, ())]
    return [group for group in groups if group]


def number_names(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Texts by their names; of a name that comes again, the second is NAME_2."""
    found: dict[str, str] = {}
    for name, text in named:
        again = sum(
            other == name or (other.startswith(f"{name}_") and other[len(name) + 1 :].isdigit()) for other in found
        )
        found[f"{name}_{again + 1}" if again else name] = text
    return found


def to_snake_case(text: str) -> str:
    """``p(labels)`` -> ``p_labels``."""
    return re.sub(r"\W+", "_", text.strip().lower()).strip("_")


def _name_column(printed: str) -> str:
    if printed in NAMES:
        return NAMES[printed]
    quantile = re.fullmatch(r"(\d+)%", printed)
    if quantile is not None:
        return f"quantile_{quantile[1]}"
    return to_snake_case(printed.split(",")[0].replace(" 95 %", " interval"))
