"""Sections of real runs: every number is that of a file, computed again in the dumbest way."""

import re
from dataclasses import replace

import numpy as np
import pytest
from refusal_runs import COMMANDS

from probing.report.checks import THRESHOLDS
from probing.report.sections import DESCRIBERS
from probing.report.svg import draw_svg

NAMES = ("rollouts", "capture", "ccs", "probe", "clusters", *(f"refusal {name}" for name in COMMANDS))
BROKEN = {"empty", "degenerate", "unfinished thought"}
REFUSED = {"refusal", "soft refusal"}


def describe(run, **thresholds):
    return DESCRIBERS[run.command](run, thresholds)


def check_of(report, name):
    return next(check for check in report.checks if check.name == name)


def says(report):
    return " ".join(sentence for section in report.sections for sentence in section.says)


def where(frame, **values):
    """The only row with these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def near(check, value, low=np.nan, high=np.nan):
    assert [check.value, check.low, check.high] == pytest.approx([value, low, high], nan_ok=True)


def test_every_command_but_those_of_pairs_and_the_doctor_is_described():
    assert set(DESCRIBERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sections_figures_and_rows_of_a_run_belong_together(runs, name):
    run = runs[name]
    report = describe(run)
    names = [section.name for section in report.sections]
    assert len(set(names)) == len(names)
    tables = {table.name: table for table in report.rows}
    for section in report.sections:
        assert re.fullmatch(r"[A-Za-z0-9-]+", section.name)
        assert section.question.endswith("?")
        assert section.run == run.label
        assert section.says
        assert not [sentence for sentence in section.says if re.search(r"\bnan\b|None|\{", sentence)]
        assert section.rows is None or section.rows in tables
        for figure in section.figures:
            assert draw_svg(figure, "figure").count("<svg") >= 1
            behind = figure.get("rows")
            assert behind is None or behind["column"] in [column.name for column in tables[behind["table"]].columns]
    for table in report.rows:
        assert re.fullmatch(r"[A-Za-z0-9-]+", table.name)
        assert len(set(table.ids)) == len(table.ids)
        assert {len(column.values) for column in table.columns} == {len(table.ids)}
        assert {len(texts) for texts in table.texts.values()} <= {len(table.ids)}
        assert table.first in [None, *(column.name for column in table.columns)]
    for check in report.checks:
        assert check.section in names
        assert check.name in THRESHOLDS
        assert f"WARN {check.side}" in check.sentence


@pytest.mark.parametrize("name", NAMES)
def test_checks_that_are_switched_off_are_left_out(runs, name):
    assert not describe(runs[name], **dict.fromkeys(THRESHOLDS)).checks


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_other_statuses_are_counted(runs, name):
    if name == "refusal export":
        return
    lost = replace(runs[name], record={**runs[name].record, "rows_by_status": {"ok": 3, "empty_text": 1}})
    report = describe(lost)
    check = check_of(report, "rows_left_out")
    assert (check.value, check.n, check.state) == (0.25, 4, "WARN")
    assert "Left out, by status: 1 empty_text (of 4 rows)" in says(report)


def test_numbers_of_groups_of_responses(runs):
    run = runs["rollouts"]
    report, frame = describe(run), run.files["rollouts.parquet"]
    good = frame[(frame["status"] == "ok") & frame["correct"].astype(bool)]
    rates = good.groupby("group")["rate"].mean()
    check = check_of(report, "share_falling")
    assert (check.value, check.n) == ((rates < 0).mean(), len(rates))
    measures = report.sections[0].tables["Under one step, with 95 % intervals"].set_index("measure")["value"]
    assert measures["mean rate of the correct responses"] == pytest.approx(rates.mean())
    table, tokens = report.rows[0], run.files["tokens.parquet"]
    assert table.ids == frame["id"].tolist()
    pulled = table.tokens["response"]
    for at, name in enumerate(table.ids):
        part = slice(pulled.offsets[at], pulled.offsets[at + 1])
        own = tokens[tokens["id"] == name]
        assert pulled.pulls[part] == own["pull"].tolist()
        assert pulled.tokens[part] == own["token"].tolist()
    sums = report.sections[0].tables["Tokens that pull most, summed over the dataset"]
    totals = tokens.groupby("token_id")["pull"].sum().sort_values(ascending=False)
    assert sums["sum of pulls"].tolist() == pytest.approx(totals[totals > 0].head(10).tolist())


def test_numbers_of_contrast_consistent_probes(runs):
    run = runs["ccs"]
    report, results = describe(run), run.files["results.parquet"]
    row = where(results, subset="all", place="chosen inside folds", probe="ccs", metric="esa")
    assert f"The accuracy of CCS on held-out statements is {row['value']:.3g} [{row['low']:.3g}" in says(report)
    near(check_of(report, "ccs_random_as_good"), row["p_random"])
    near(check_of(report, "ccs_labels_p"), row["p_labels"])
    # With five random probes no share of them is below 1/6.
    assert check_of(report, "ccs_random_as_good").state == "not judged"
    controls = run.files["controls.parquet"]
    place = run.record["best"]["ccs"]
    truth, word = (
        where(controls, control="distractor", place=place, metric=metric) for metric in ("truth", "distractor")
    )
    more = [word["value"] - truth["value"], word["low"] - truth["high"], word["high"] - truth["low"]]
    near(check_of(report, "ccs_follows_word"), *more)


def test_pairs_are_judged_as_the_accuracy_in_the_files_judges_them(runs):
    run = runs["ccs"]
    table = describe(run).rows[0]
    columns = {column.name: column.values for column in table.columns}
    pairs = run.files["pairs.parquet"]
    for at, pair in enumerate(pairs.itertuples()):
        own, other = (pair.ccs_A1 + 1 - pair.ccs_A0) / 2, (pair.ccs_N1 + 1 - pair.ccs_N0) / 2
        assert columns["score"][at] == pytest.approx(own)
        right = [(own > 0.5) == pair.label, (other > 0.5) != pair.label]
        assert columns["right"][at] == sum(right) / 2
    row = where(run.files["results.parquet"], subset="all", place="chosen inside folds", probe="ccs", metric="esa")
    assert np.mean(columns["right"]) == pytest.approx(row["value"])


def test_numbers_of_probes_of_labels(runs):
    run = runs["probe"]
    report, results = describe(run), run.files["results.parquet"]
    held = results[results["set"] == "held out"]
    row = where(held, place="chosen inside folds", probe="logistic", metric="auroc")
    near(check_of(report, "probe_above_surface"), *row[["above_surface", "above_surface_low", "above_surface_high"]])
    near(check_of(report, "probe_labels_p"), row["p_labels"])
    assert check_of(report, "probe_labels_p").state == "not judged"
    fresh = where(results, set="fresh", place=run.record["best"]["logistic"], probe="logistic", metric="auroc")
    near(check_of(report, "probe_fresh_auroc"), *fresh[["value", "low", "high"]])
    surface = where(held, place="surface", metric="auroc")
    assert f"alone reaches an AUROC of {surface['value']:.3g}" in says(report)
    frame = run.files["predictions.parquet"]
    wrong = sum((row.logistic > 0) != row.label for row in frame.itertuples())
    assert f"gives {wrong:,} of {len(frame):,} rows the wrong label" in says(report)


def test_numbers_of_clusters(runs):
    run = runs["clusters"]
    report, results = describe(run), run.files["results.parquet"]
    held = results[(results["set"] == "held out") & (results["place"] == "chosen inside folds")]
    for model, check in zip(
        ("bundled", "bundled-displaced"), [c for c in report.checks if c.name == "clusters_labels_p"], strict=True
    ):
        row = where(held, model=model, metric="silhouette")
        near(check, row["p_labels"])
        assert check.sentence.startswith(f"{model}: ")
        assert (
            f"{model}: at the place chosen inside each fold the silhouette of the labels is {row['value']:.3g}"
            in says(report)
        )
        below = int((run.files["rows.parquet"][f"silhouette {model}"] < 0).sum())
        assert f"{model}: {below} of {len(run.files['rows.parquet'])} rows lie nearer" in says(report)
    row = where(held, model="bundled-displaced", metric="silhouette")
    change = row[["minus_first_corrected", "minus_first_low", "minus_first_high"]]
    near(check_of(report, "clusters_separation_change"), *change)
    assert check_of(report, "clusters_centres_p").value == where(held, model="bundled", metric="welch")["p_labels"]


def test_numbers_of_extracted_directions(runs):
    run = runs["refusal extract"]
    report, results = describe(run), run.files["results.parquet"]
    check = check_of(report, "direction_auroc")
    assert check.value == results["auroc"].max()
    assert check.n == run.record["held_out"]
    best = results[results["auroc"] == results["auroc"].max()]
    best = best[best["labels_high"] == best["labels_high"].min()].iloc[0]
    ends = best[["auroc", "auroc_low", "auroc_high"]] - best["labels_high"]
    near(check_of(report, "direction_above_permuted"), *ends)
    assert f"is at {best['place']}, position {best['position']}: AUROC {best['auroc']:.3g}" in says(report)


def test_numbers_of_a_selection(runs):
    run = runs["refusal select"]
    report = describe(run)
    chosen = where(run.files["candidates.parquet"], status="chosen")
    near(check_of(report, "select_bypass"), chosen["bypass"])
    near(check_of(report, "select_kl"), chosen["kl"])
    assert f"Chosen is {chosen['place']}, position {chosen['position']}." in says(report)
    passed = sum(status in ("chosen", "passes") for status in run.files["candidates.parquet"]["status"])
    assert f"{passed} of {len(run.files['candidates.parquet'])} candidates were found to keep" in says(report)


def test_numbers_of_an_evaluated_edit(runs):
    run = runs["refusal evaluate"]
    report = describe(run)
    results = run.files["results.parquet"]
    results = results[results["category"] == "all"]
    odds = where(results, kind="harmful", measure="refusal_log_odds", when="after")
    assert f"before and {odds['value']:.3g} [{odds['low']:.3g}, {odds['high']:.3g}] after" in says(report)
    # One random direction is no band.
    assert check_of(report, "edit_outside_random").state == "not judged"
    kl = where(results, kind="harmless", measure="kl_first", when="after")
    assert f"answers moves by {kl['value']:.3g} [{kl['low']:.3g}" in says(report)


def test_answers_are_counted_by_what_they_do(runs):
    run = runs["refusal evaluate"]
    answers = run.files["answers.parquet"]
    cycle = ["refusal", "soft refusal", "compliance", "empty", "degenerate", "unfinished thought", "compliance"]
    told = [cycle[at % len(cycle)] for at in range(len(answers))]
    answers = answers.assign(verdict_after=told, verdict_before=["compliance", "refusal"] * (len(answers) // 2))
    report = describe(replace(run, files={**run.files, "answers.parquet": answers}))
    broken = [verdict in BROKEN for verdict in told]
    check = check_of(report, "edit_broken_answers")
    assert (check.value, check.n) == (pytest.approx(np.mean(broken)), len(answers))
    own = answers[answers["kind"] == "harmless"]
    before, after = (
        np.mean([verdict in REFUSED for verdict in own[f"verdict_{when}"]]) for when in ("before", "after")
    )
    assert after != before
    assert check_of(report, "edit_refuses_harmless").value == pytest.approx(after - before)
    count = sum(verdict in BROKEN for verdict in own["verdict_after"])
    assert f"Of {len(own)} answers to harmless prompts {count} are empty, degenerate or unfinished" in says(report)


def test_what_an_edit_does_is_held_against_bands_of_enough_directions(runs):
    run = runs["refusal evaluate"]
    results = run.files["results.parquet"].assign(random_n=10.0)
    report = describe(replace(run, files={**run.files, "results.parquet": results}))
    everything = results[results["category"] == "all"]
    row = where(everything, kind="harmful", measure="refusal_log_odds", when="after")
    assert row["value"] < row["random_low"]
    ends = row["random_low"] - row["value"], row["random_low"] - row["high"], row["random_low"] - row["low"]
    near(check_of(report, "edit_outside_random"), *ends)
    kl = where(everything, kind="harmless", measure="kl_first", when="after")
    near(check_of(report, "edit_kl_harmless"), *(kl[["value", "low", "high"]] - kl["random_high"]))
    # An edit that adds the direction is made for harmless prompts.
    record = {**run.record, "config": {**run.record["config"], "mode": "add"}}
    added = describe(replace(run, record=record, files={**run.files, "results.parquet": results}))
    row = where(everything, kind="harmless", measure="refusal_log_odds", when="after")
    outside = max(row["random_low"] - row["value"], row["value"] - row["random_high"])
    assert check_of(added, "edit_outside_random").value == pytest.approx(outside)
    assert check_of(added, "edit_outside_random").sentence.startswith("harmless prompts: ")


def test_numbers_of_a_transferred_direction(runs):
    run = runs["refusal transfer"]
    report, results = describe(run), run.files["results.parquet"]
    best = results[results["map_error"] == results["map_error"].min()].iloc[0]
    assert check_of(report, "transfer_p_random").value == best["random_p"]
    assert check_of(report, "transfer_p_random").state == "not judged"
    assert check_of(report, "transfer_outside_random").state == "not judged"
    assert f"an AUROC of {best['auroc']:.3g}" in says(report)
    record = {**run.record, "config": {**run.record["config"], "random_edits": 5}}
    check = check_of(describe(replace(run, record=record)), "transfer_outside_random")
    outside = max(best["random_removed_low"] - best["removed"], best["removed"] - best["random_removed_high"])
    assert check.value == pytest.approx(outside)


def test_numbers_of_a_trace(runs):
    run = runs["refusal trace"]
    report, places = describe(run), run.files["results.parquet"]
    chosen = where(places, place="chosen inside folds")
    highest = places[places["depth"].notna()]["decision_f1_labels_high"].max()
    ends = chosen[["decision_f1", "decision_f1_low", "decision_f1_high"]].astype(float) - highest
    near(check_of(report, "trace_above_permuted"), *ends)
    cliffs = run.files["cliffs.parquet"]
    own = cliffs[cliffs["kind"] == "harmless"]
    assert f"it falls in {100 * (own['cliff'] > 0).mean():.3g} % of {len(own)} harmless texts" in says(report)
    curve = report.rows[0].texts["last tokens of the prompt [projection]"]
    tokens = run.files["curves.parquet"]
    first = tokens[(tokens["id"] == cliffs["id"].iloc[0]) & (tokens["part"] == "prompt")]
    assert curve[0].endswith(f"{first['text'].iloc[-1]}[{first['projection'].iloc[-1]:.3g}]")


def test_numbers_of_an_audit(runs):
    run = runs["refusal audit"]
    report, prompts = describe(run), run.files["prompts.parquet"]
    check = check_of(report, "audit_writers_removed")
    states = run.files["writers.parquet"].drop_duplicates("writer")["state_of_writer"]
    assert (check.value, check.n) == ((states == "removed").mean(), len(states))
    own = prompts[prompts["kind"] == "harmful"]
    change = own["log_odds_after"] - own["log_odds_before"]
    assert check_of(report, "audit_log_odds_change").value == pytest.approx(change.mean(), rel=1e-6)
    assert f"{int((own['log_odds_after'] > 0).sum())}; " in says(report)


def test_an_export_is_told_with_its_proof(runs):
    report = describe(runs["refusal export"])
    assert runs["refusal export"].record["proof"] in says(report)
    assert not report.checks


@pytest.mark.parametrize("name", NAMES)
def test_a_run_whose_files_lack_something_is_described_all_the_same(runs, name):
    run = runs[name]
    short = replace(run, summary={}, record={"command": name})
    assert describe(short).sections
    for file, frame in run.files.items():
        others = {other: kept for other, kept in run.files.items() if other != file}
        for changed in (others, others | {file: frame.iloc[:0]}, others | {file: frame.assign(status="broken")}):
            assert describe(replace(short, files=changed)).sections
        empty = frame.copy()
        for column in frame.select_dtypes("float"):
            empty[column] = np.nan
        report = describe(replace(run, files=others | {file: empty}))
        assert not re.search(r"\bnan\b", says(report))
        assert all(draw_svg(figure, "figure") for section in report.sections for figure in section.figures)


OPTIONAL = {
    "ccs": ("results.parquet", "p_random", "p_labels", "labels_low", "pairings_low", "random_low"),
    "probe": ("predictions.parquet", "category", "surface", "lda", "fold"),
    "clusters": ("results.parquet", "minus_first_corrected", "corrected", "p_labels", "minus_first_low"),
    "refusal extract": ("results.parquet", "labels_low", "labels_high", "angle"),
    "refusal evaluate": ("answers.parquet", "thinking", "log_odds_before", "prompt", "kl_first"),
    "refusal transfer": ("results.parquet", "map_error", "removed", "random_p", "random_low", "random_removed_low"),
    "refusal trace": ("cliffs.parquet", "at", "plateau"),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_columns_that_older_runs_lack_are_missed_by_nobody(runs, name):
    file, *columns = OPTIONAL[name]
    for column in columns:
        frame = runs[name].files[file]
        assert column in frame
        report = describe(replace(runs[name], files={**runs[name].files, file: frame.drop(columns=column)}))
        assert not re.search(r"\bnan\b", says(report))
    results = {**runs["probe"].files}
    results["results.parquet"] = results["results.parquet"][results["results.parquet"]["set"] == "held out"]
    plain = describe(replace(runs["probe"], files=results))
    assert "No prompts that were written independently were given (--fresh)." in says(plain)
    assert "probe_fresh_auroc" not in [check.name for check in plain.checks]


def test_one_model_has_nothing_to_compare(runs):
    run = runs["clusters"]
    results = run.files["results.parquet"]
    alone = {"results.parquet": results[results["model"] == "bundled"], "rows.parquet": run.files["rows.parquet"]}
    report = describe(replace(run, files=alone))
    assert len(report.sections) == 2
    assert "clusters_separation_change" not in [check.name for check in report.checks]


def test_texts_are_shown_where_they_are_known(runs):
    run = runs["probe"]
    ids = run.files["predictions.parquet"]["id"].tolist()
    known = replace(run, texts={ids[0]: {"text": "Is it <b>true</b>?"}})
    table = describe(known).rows[0]
    assert table.texts == {"text": ["Is it <b>true</b>?"] + [None] * (len(ids) - 1)}
    assert "Their texts are not known" in describe(run).rows[0].about
