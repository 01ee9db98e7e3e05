"""The names of tables and of their columns in ``--json``: programs read them, so that none changes by accident."""

import json
import shutil

import pytest
import refusal_runs

from probing.data.bundled import bundled_data, bundled_displaced
from probing.report.columns import GIVEN_UP

QUICK = "--resamples 20 --folds 3 --places resid_post:1,resid_post:2".split()
FAST = "--epochs 5 --restarts 2 --pairings 1 --random 3 --refits 2 --permutations 5".split()
PREDICTORS = "ches,ches_normalized,last_state_similarity,edit_similarity,displacement_rate,displacement_rate_exact"

NAMES = {
    "score": {
        "pairs_by_status": "status pairs",
        "quantiles_of_the_scores": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "quantiles_of_likelihoods": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "quantiles_of_displacement_rates": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "quantiles_of_entanglement": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "regimes": "score regime pairs share low high",
        "least_weight_of_an_sft_term": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "ranking": "measure value low high pairs",
        "histogram_of_ches_normalized": "from to pairs bar",
        "most_alike_by_ches_normalized": "ches_normalized id prompt chosen rejected",
        "least_alike_by_ches_normalized": "ches_normalized id prompt chosen rejected",
        "tokens_that_pull_most": "token times sum_of_pulls mean_pull",
        "single_tokens_that_pull_most": "pull id position context",
        "notes": "note",
    },
    "filter": {
        "pairs": "status kept dropped",
        "quantiles": "rows pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100",
    },
    "show": {
        "pairs": (
            "id status prompt_tokens chosen_tokens rejected_tokens ches ches_normalized "
            "last_state_similarity edit_similarity chosen_logprob rejected_logprob chosen_logprob_per_token "
            "rejected_logprob_per_token ranking_correct ranking_difficulty chosen_mean_rank "
            "rejected_mean_rank chosen_rank_surprisal rejected_rank_surprisal displacement_rate "
            "rejected_rate entanglement gradient_ratio least_sft_weight regime row"
        ),
    },
    "displacement": {
        "pairs_by_status": "status pairs",
        "from_reference_to_policy": "measure value low high pairs",
        "rank_correlation_of_scores_of_the_reference_with_the_change_of_ln_p": "score spearman low high pairs",
        "by_group": (
            "group pairs displaced chosen_change rejected_change margin_change spearman_ches "
            "spearman_ches_normalized spearman_last_state_similarity spearman_edit_similarity "
            "spearman_displacement_rate spearman_displacement_rate_exact"
        ),
        "chosen_responses_that_lost_most": "chosen_change id prompt chosen rejected",
        "where_their_probability_went": "id position token p_before p_after gained",
        "course_over_training": (
            "step pairs change_of_ln_p_chosen change_of_ln_p_rejected change_of_the_margin displaced ranking_accuracy"
        ),
        "drop_of_the_chosen_response": "measure value low high pairs",
        "notes": "note",
    },
    "rollouts": {
        "groups_by_status": "status groups",
        "what_one_step_of_grpo_does": "measure value low high n",
        "tokens_that_pull_most": "token times sum_of_pulls mean_pull",
        "single_tokens_that_pull_most": "pull id position context",
        "groups_whose_correct_responses_fall_most": "rate rate_per_token group correct incorrect prompt",
    },
    "influence": {
        "pairs_by_status": "status pairs",
        "directions": "direction part target norm step error_of_the_step lost",
        "quantiles_of_influence": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "what_dropping_the_pairs_of_lowest_influence_does_to_the_target": (
            "dropped pairs change_of_the_target pairs_below_0"
        ),
        "spread_of_influence_on_a_sample": "direction draws median lowest highest",
        "pairs_that_lower_the_target_most": "influence id prompt chosen rejected",
        "pairs_that_lower_the_target_most_along_the_pilot": "pilot_influence id prompt chosen rejected",
        "quantiles_of_joint_rates": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "all_pairs_trained_together": "measure value low high pairs",
        "quantiles_of_what_the_pilot_changed": (
            "score pairs quantile_0 quantile_5 quantile_25 quantile_50 quantile_75 quantile_95 quantile_100"
        ),
        "by_group": (
            "group pairs influence influence_low influence_high share_of_harm share_of_the_worst_tenth "
            "share_of_the_best_tenth joint_rate joint_low joint_high joint_below_0 pilot_influence "
            "worst_tenth_along_the_pilot best_tenth_along_the_pilot pilot_change"
        ),
        "notes": "note",
    },
    "capture": {
        "rows_by_status": "status rows",
        "states": "place shape dtype megabytes",
        "how": "model run",
    },
    "ccs": {
        "pairs_by_status": "status pairs",
        "probes": (
            "probe esa low high p_labels p_random auroc polar_consistency median_abs_polar_consistency "
            "contradiction_index silhouette"
        ),
        "ccs_there": "metric value low high random pairings labels p_random p_labels",
        "by_place": (
            "place ccs_accuracy low high random p_corrected ccs_contradiction random_contradiction "
            "crc_tpc_accuracy vinc_accuracy mass_mean_accuracy logistic_accuracy chosen_by_ccs"
        ),
        "by_formulation": "probe formulation metric value low high pairs random",
        "mean_over_places_of_the_absolute_difference_between_formulations": (
            "formulations metric probe difference low high"
        ),
        "marker_control": "probe metric before after change low high pairs",
        "distractor_test": (
            "place right_about_truth low high right_about_the_word word_low word_high cosine_with_the_word follows"
        ),
        "restarts_of_ccs": "place least_loss largest_loss agreement distinct_optima",
        "cosine_of_the_ccs_direction_with_others": "place crc_tpc vinc mass_mean logistic",
        "notes": "note",
    },
    "probe": {
        "rows_by_status": "status rows",
        "auroc": "set probe place auroc low high rows p_labels above_baseline above_baseline_low above_baseline_high",
        "by_place": (
            "place logistic low high p_corrected permuted_labels logistic_fresh mass_mean mass_mean_fresh "
            "lda lda_fresh chosen_by_logistic"
        ),
        "notes": "note",
    },
    "clusters": {
        "rows_by_status": "status rows",
        "rows_of_the_control_by_status": "status rows",
        "held_out": (
            "model layers silhouette silhouette_interval silhouette_p aqi_size_free corrected "
            "corrected_interval centres_p minus_the_first minus_the_first_interval"
        ),
        "by_place": (
            "model place silhouette silhouette_interval silhouette_p_over_places centres_p_over_places "
            "permuted_labels davies_bouldin dunn calinski_harabasz xie_beni aqi aqi_size_free chosen weight"
        ),
        "sets_of_rows": (
            "model place rows_of rows silhouette silhouette_interval silhouette_p aqi_size_free corrected "
            "corrected_interval centres_p silhouette_without_it silhouette_without_it_interval"
        ),
        "differences_of_corrected_values": (
            "model place silhouette silhouette_interval aqi_size_free aqi_size_free_interval"
        ),
        "drift": "model place shift_relative cka cka_debiased largest_angle mean_angle conflict conflict_2",
        "notes": "note",
    },
    "report": {"checks": "state run check finding"},
    "status": {
        "runs": "folder command state noted_seconds_ago pid host ended_by counted seconds why",
        "parts": (
            "folder within doing unit rows of earlier tokens seconds rows_per_second tokens_per_second seconds_left"
        ),
        "failures_by_status": "folder doing status rows",
        "workers": "folder within doing worker rows tokens seconds pid host",
    },
    "doctor": {
        "machine": "what found",
        "what_will_run": "what choice why",
        "versions": "library version",
        "model": "what found",
        "what_the_blocks_add_to_the_residual_stream": "layers attn_out mlp_out form",
    },
}

REFUSAL = {
    "extract": {
        "rows_by_status": "status rows",
        "prompts": "prompts read of_the_right_sign to_find_directions held_out median_refusal_score",
        "refusal_tokens": "token id harmful harmless",
        "by_place": "place auroc interval permuted_labels angle length cosine_to_the_other",
        "by_place_2": "place auroc interval permuted_labels angle length cosine_to_the_other",
        "notes": "note",
    },
    "select": {
        "choices": "by place position bypass induce kl cosmic",
        "candidates": "place position bypass induce kl cosmic status reason",
        "candidates_by_what_became_of_them": "outcome candidates",
        "refusal_score_of_the_unedited_model": "prompts used mean_refusal_score",
        "cost_in_layer_forwards": "what layer_forwards",
        "notes": "note",
    },
    "evaluate": {
        "verdict": "verdict",
        "refusal_in_generated_answers": "prompts count refused_before before_interval refused_after after_interval",
        "answers_by_what_they_do": (
            "the_answer_is harmful_before harmful_before_interval harmful_after harmful_after_interval "
            "harmless_before harmless_before_interval harmless_after harmless_after_interval"
        ),
        "log_odds_of_refusal_at_the_first_token": (
            "prompts measure before before_interval after after_interval random_directions random_by_covariance "
            "permuted_labels"
        ),
        "how_far_harmless_answers_change": (
            "measure value interval random_directions random_by_covariance permuted_labels"
        ),
        "by_category": (
            "prompts category count refused_before before_interval log_odds_before refused_after "
            "after_interval log_odds_after"
        ),
        "each_category_left_out_of_the_extraction": (
            "category left_out_of_the_extraction place_chosen auroc evaluated log_odds_before "
            "log_odds_after above_0_before above_0_after"
        ),
        "refusal_tokens": "token id harmful harmless",
        "rows_by_status": "status rows",
        "notes": "note",
    },
    "trace": {
        "finding": "finding",
        "decisions_of_the_model": "prompts read refused complied not_known median_refusal_score",
        "agreement_by_place": (
            "place depth f1 interval permuted_labels auroc f1_of_the_head_of_the_kind above_it above_it_interval "
            "f1_across_sources across_interval"
        ),
        "sources": "source prompts refused f1 accuracy",
        "logit_lens_by_place": "place depth harmful harmful_interval harmless harmless_interval gap",
        "cliff": "at kind texts plateau last cliff interval random_directions share_of_texts_that_fall",
        "refusal_tokens": "token id harmful harmless",
        "rows_by_status": "status rows",
        "notes": "note",
    },
    "export": {
        "proved": "proof",
        "tensors": "file tensors changed",
        "notes": "note",
    },
    "transfer": {
        "models": "model place fitted held_out map",
        "auroc_of_held_out_prompts_by_their_projection": (
            "model direction error_of_the_map cosine_to_own auroc interval random_through_the_map "
            "p_against_random map_of_permuted_prompts"
        ),
        "change_of_the_mean_refusal_log_odds": (
            "model direction removed interval random_removed added added_interval random_added"
        ),
        "by_category_of_the_harmful_prompts": (
            "model category held_out auroc_of_the_transferred_direction "
            "auroc_of_the_own_direction_of_the_other_categories"
        ),
        "notes": "note",
    },
    "audit": {
        "finding": "finding",
        "writers_by_kind": (
            "kind writers removed in_part kept absent unchanged relative_change effective_rank u1_v "
            "share_along_v component_left"
        ),
        "writers_with_the_most_of_the_direction_left": (
            "writer state relative_change effective_rank u1_v share_along_v component_left"
        ),
        "refusal_direction_of_the_policy_beside_that_of_the_reference": (
            "place cosine_at_the_end length_ratio_at_the_end cosine_at_the_instruction length_ratio_at_the_instruction"
        ),
        "refusal_tokens": "token id found_in",
        "refusal_by_the_first_token": "measure value low high prompts",
        "notes": "note",
    },
}

COMPARISON = {
    "pairs_by_status": "status pairs",
    "rules": "rule kept chosen_tokens rejected_tokens spearman_with_tokens low high",
    "agreement_of_two_rules": "rule other both share jaccard spearman low high",
    "what_each_rule_keeps_by_group": "group rule pairs kept share",
    "notes": "note",
}

RARE = "aqi_size_free aqi_size_free_without"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The bundled data with further columns and in two halves, and a folder of checkpoints."""
    folder = tmp_path_factory.mktemp("inputs")
    pairs = [json.loads(line) for line in bundled_data("pairs").read_text(encoding="utf-8").splitlines()[:30]]
    for number, pair in enumerate(pairs):
        pair |= {"kind": f"kind {number % 2}", "share": 0.6}
    prompts = bundled_data("prompts").read_text(encoding="utf-8").splitlines()
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    for name, part in {"prompts": prompts[::4], "fresh": prompts[1::4]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part), encoding="utf-8")
    for step in (5, 10):
        shutil.copytree(bundled_displaced(), folder / "steps" / f"checkpoint-{step}")
    return folder


def options(command, inputs, out):
    """A command with the options that bring as many tables as it has."""
    pairs, prompts, fresh = (inputs / f"{name}.jsonl" for name in ("pairs", "prompts", "fresh"))
    model = ["--model", "bundled", "--out", out / command]
    given = {
        "score": [*model, "--data", pairs, "--columns", "all,regime", "--pull"],
        "rollouts": [*model, "--data", "bundled", "--limit", "12"],
        "filter": f"--data {pairs} --scores {out / 'score'} --by ches_normalized --keep-lowest 0.5".split(),
        "show": [out / "score", "--lowest", "2"],
        "displacement": f"--reference bundled --steps {inputs / 'steps'} --data {pairs} --out {out / 'moved'}".split(),
        # The pairs of the file cancel one another, so that all of them together have no gradient.
        "influence": [*model, "--data", "bundled", "--sample", "48", "--target", pairs, "--joint", "--null-draws", "1"],
        "capture": [*model, "--data", prompts, "--places", "final_norm"],
        "ccs": [*model, "--data", "bundled", *QUICK, *FAST, "--replace-word", "dangerous=risky"],
        "probe": [*model, "--data", prompts, "--fresh", fresh, *QUICK, "--refits", "2"],
        "clusters": [*model, "--model", "bundled-displaced", "--data", prompts, *QUICK, "--no-tsne"],
        "report": [out / "moved", "--out", out / "report.html"],
        "status": [out / "score"],
        "doctor": ["--model", "bundled"],
    }
    pilot = "--pilot-steps 2 --learning-rate 1e-4 --pilot-influence --batch-pairs 4".split()
    more = {
        "filter": ["--out", out / "kept.jsonl"],
        "displacement": f"--group-column kind --rater-share-column share --top 1 --predictors {PREDICTORS}".split(),
        "influence": ["--group-column", "kind", *pilot],
        "clusters": ["--permutations", "5", "--control", fresh],
    }
    return [command, *given[command], *more.get(command, [])]


def test_names_of_tables_and_columns_are_as_they_were(probing, inputs, tmp_path):
    found = {}
    for command in NAMES:
        status, shown, errors = probing(*options(command, inputs, tmp_path), "--json")
        assert status == 0, errors
        answer = json.loads(shown)
        assert list(answer["titles"]) == list(answer["columns"])
        for name, title in answer["titles"].items():
            assert all(list(row) == list(answer["columns"][name]) for row in answer["tables"][title])
        found[command] = {name: " ".join(columns) for name, columns in answer["columns"].items()}
    assert found == NAMES


def test_names_of_the_tables_of_refusals(probing, refusal_run):
    """Finished runs are shown again; an export is made anew."""
    found = {}
    for command in REFUSAL:
        out = refusal_run / ("again" if command == "export" else command)
        given = refusal_runs.options_of(command, refusal_run / "prompts.jsonl", refusal_run, out)
        status, shown, errors = probing(*given, "--json")
        assert status == 0, errors
        answer = json.loads(shown)
        for name, title in answer["titles"].items():
            assert all(list(row) == list(answer["columns"][name]) for row in answer["tables"][title])
        found[command] = {name: " ".join(columns) for name, columns in answer["columns"].items()}
    assert found == REFUSAL


def test_names_of_the_tables_of_a_comparison_of_rules(probing, inputs, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    # A pair of one token each gives the table of notes.
    short = {"id": "short", "kind": "short", "prompt": "Is it?", "chosen": " a", "rejected": " b"}
    rows = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [{**row, **{name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}} for row in rows]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in [*plain, short]), encoding="utf-8")
    scored = ["--model", "bundled", "--data", pairs, "--columns", "ches,edit_similarity", "--no-eos"]
    assert probing("score", *scored, "--out", tmp_path / "scores")[0] == 0
    given = ["--data", pairs, "--scores", tmp_path / "scores", "--compare", "all", "--keep", ".5"]
    status, shown, errors = probing("filter", *given, "--group-column", "kind", "--json")
    assert status == 0, errors
    answer = json.loads(shown)
    assert {name: " ".join(columns) for name, columns in answer["columns"].items()} == COMPARISON


def test_every_column_that_may_be_left_out_is_one_of_its_table():
    # The test of that table holds its names.
    columns = {"places_where_some_rows_have_a_norm_far_above_the_others": {"rows", *RARE.split()}}
    for tables in (*NAMES.values(), *REFUSAL.values(), COMPARISON):
        for name, of_table in tables.items():
            columns.setdefault(name, set()).update(of_table.split())
    for table, groups in GIVEN_UP.items():
        assert set(" ".join(groups).split()) <= columns[table], table
