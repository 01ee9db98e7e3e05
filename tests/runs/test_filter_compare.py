"""Filtering by the columns of displacement and influence runs, and rules compared over several runs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.runs import displacement, score
from probing.runs import filter as filtering
from probing.runs.filter import FilterConfig
from probing.store.files import file_sha256
from probing.store.manifest import claim

COUNT = 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Pairs of four kinds with their scores, what they did to a copy of the model, and an influence of each."""
    folder = tmp_path_factory.mktemp("runs")
    lines = bundled_data("pairs").read_text(encoding="utf-8").splitlines()[:: 320 // COUNT]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"data": str(folder / "pairs.jsonl")}
    score.run(score.ScoreConfig(model="bundled", out=folder / "scores", columns="all,displacement_rate", **data))
    models = {"reference": "bundled", "policy": "bundled-displaced"}
    config = displacement.DisplacementConfig(out=folder / "moved", top=0, predictors="ches", **models, **data)
    displacement.run(config)
    make_influence(folder / "influence", folder / "scores")
    return folder


def make_influence(out, scores, **changes):
    """A finished run of influence, as far as anything reads it: the record and table of one over scored pairs."""
    frame = pd.read_parquet(scores / "scores.parquet")
    generator = np.random.default_rng(0)
    columns = {name: generator.standard_normal(len(frame)) for name in ("influence", "joint_rate")}
    table = frame[["id", "status", "prompt_tokens", "chosen_tokens", "rejected_tokens"]].assign(**columns, **changes)
    known = json.loads((scores / "run.json").read_text())
    with claim(out, "influence") as folder:
        table.to_parquet(out / "influence.parquet")
        facts = {name: known[name] for name in ("config", "identity", "model", "data", "rows_by_status", "problems")}
        folder.write(
            {**facts, "status": "done", "sha256": {"influence.parquet": file_sha256(out / "influence.parquet")}}
        )


def table_of(runs, name):
    files = {"scores": "scores.parquet", "moved": "displacement.parquet", "influence": "influence.parquet"}
    return pd.read_parquet(runs / name / files[name])


def filter_by(runs, out, name, by, **rule):
    return filtering.run(FilterConfig(data=str(runs / "pairs.jsonl"), scores=runs / name, by=by, out=out, **rule))


def compare(runs, *names, compare="all", keep=0.25, **changes):
    scores = [runs / name for name in names]
    values = {"data": str(runs / "pairs.jsonl"), "scores": scores, "compare": compare, "keep": keep} | changes
    return filtering.run(FilterConfig(**values))


def pick(report):
    """The tables of the rules and of their agreement."""
    return [table for title, table in report.tables.items() if title.startswith(("Rules,", "Agreement"))]


def read_ids(path):
    return {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize(
    ("name", "by"), [("moved", "margin_change"), ("influence", "influence"), ("influence", "joint_rate")]
)
def test_pairs_are_filtered_by_what_they_did_or_do(runs, tmp_path, name, by):
    report = filter_by(runs, tmp_path / "kept.jsonl", name, by, drop_lowest=0.25)
    ordered = table_of(runs, name).sort_values([by, "id"])["id"]
    assert read_ids(tmp_path / "kept.jsonl") == set(ordered[8:])
    assert report.facts["dropped"] == 8
    dropped = [json.loads(line) for line in (tmp_path / "kept.dropped.jsonl").read_text().splitlines()]
    numbers = table_of(runs, name).set_index("id")[by]
    assert all(row[f"probing_{by}"] == numbers[row["id"]] for row in dropped)


@pytest.mark.parametrize(
    ("name", "by", "said"),
    [
        ("moved", "chosen_change", "It is the change of ln p(chosen), nats."),
        ("influence", "influence", "Lower means that training on the pair lowers the target more."),
        ("influence", "joint_rate", "Lower means that the chosen response is expected to lose more when all pairs"),
    ],
)
def test_the_card_names_the_models_and_what_the_column_means(runs, tmp_path, name, by, said):
    filter_by(runs, f"{tmp_path}/kept/", name, by, keep_highest=0.5)
    card = (tmp_path / "kept" / "README.md").read_text(encoding="utf-8")
    assert said in card
    assert f"the 50 % with the highest `{by}` are kept" in card
    named = ["- Reference: `bundled`", "- Policy: `bundled-displaced`"] if name == "moved" else ["- Model: `bundled`"]
    assert all(line in card for line in named)
    assert f"--scores {runs / name} --by {by} --keep-highest 0.5" in card


@pytest.mark.parametrize(
    ("by", "rule", "said"),
    [
        ("influence", {"keep_lowest": 0.5}, "keeps the pairs that lower the target most"),
        ("joint_rate", {"drop_highest": 0.5}, "keeps the pairs whose chosen responses lose most"),
        ("influence", {"keep_highest": 0.5}, None),
    ],
)
def test_the_wrong_end_of_an_influence_is_said_aloud(runs, tmp_path, caplog, by, rule, said):
    filter_by(runs, tmp_path / "kept.jsonl", "influence", by, **rule)
    assert [record.message.split(" ", 3)[3] for record in caplog.records] == ([said] if said else [])


def test_errors_of_a_column_name_those_of_the_run(runs, tmp_path):
    with pytest.raises(UsageError, match=r"no score column 'ches'; there are influence, joint_rate$"):
        filter_by(runs, tmp_path / "kept.jsonl", "influence", "ches", keep_lowest=0.5)


def damage_unfinished(folder):
    (folder / "influence.parquet").unlink()
    record = json.loads((folder / "run.json").read_text())
    kept = {name: record[name] for name in ("schema_version", "command", "config", "identity")}
    (folder / "run.json").write_text(json.dumps({**kept, "status": "running"}))


def damage_table(folder):
    pd.read_parquet(folder / "influence.parquet").assign(influence=1.0).to_parquet(folder / "influence.parquet")


def damage_record(folder):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "sha256": {}}))


DAMAGED = {
    "unfinished": (damage_unfinished, UsageError, "is not finished; run the same 'probing influence' again"),
    "changed": (damage_table, StoreCorrupt, "changed since the run ended"),
    "record": (damage_record, StoreCorrupt, "it was changed since it was written"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_unfinished_and_damaged_runs_are_refused(runs, tmp_path, case):
    damage, error, message = DAMAGED[case]
    shutil.copytree(runs / "influence", tmp_path / "influence")
    damage(tmp_path / "influence")
    shutil.copy(runs / "pairs.jsonl", tmp_path)
    with pytest.raises(error, match=message):
        filter_by(tmp_path, tmp_path / "kept.jsonl", "influence", "influence", keep_highest=0.5)
    assert not (tmp_path / "kept.jsonl").exists()


def test_a_run_of_another_command_gives_no_scores(runs, tmp_path):
    with claim(tmp_path / "ccs", "ccs") as folder:
        folder.write({"status": "running"})
    with pytest.raises(UsageError, match="is of 'probing ccs', which gives pairs no scores; give the output folder of"):
        filter_by(tmp_path, tmp_path / "kept.jsonl", "ccs", "ches", keep_lowest=0.5)


def test_rules_of_several_runs_are_compared(runs):
    report = compare(runs, "scores", "moved", "influence", group_column="kind")
    lengths, agreement = pick(report)
    scores = table_of(runs, "scores").merge(table_of(runs, "moved")[["id", "margin_change", "margin_before"]], on="id")
    scores = scores.merge(table_of(runs, "influence")[["id", "influence", "joint_rate"]], on="id")
    assert report.facts["compared"] == COUNT
    assert report.facts["kept"] == 8
    expected = {"ches", "ches_normalized", "last_state_similarity", "edit_similarity", "ranking_difficulty"}
    expected |= {"displacement_rate", "margin_before", "margin_change", "influence", "joint_rate"}
    assert {rule.split(":")[0] for rule in report.facts["rules"]} == expected
    assert report.facts["scores"]["ches"] == str(runs / "scores")
    assert report.facts["scores"]["joint_rate"] == str(runs / "influence")
    assert len(lengths) == 1 + len(expected)
    row = agreement.set_index(["rule", "other"]).loc[("ches_normalized:lowest", "influence:highest")]
    one = set(scores.sort_values(["ches_normalized", "id"])["id"][:8])
    other = set(scores.sort_values(["influence", "id"], ascending=[False, True])["id"][:8])
    assert row["both"] == len(one & other)
    assert row["Jaccard"] == len(one & other) / len(one | other)
    found = spearmanr(scores["ches_normalized"], -scores["influence"]).statistic
    assert row["Spearman"] == pytest.approx(found, abs=1e-12)
    [counted] = [table for title, table in report.tables.items() if title == "What each rule keeps by group: kind"]
    assert len(counted) == 4 * len(expected)
    assert (counted.groupby("rule")["kept"].sum() == 8).all()


def test_a_margin_before_is_a_difficulty_of_the_other_sign(runs):
    report = compare(runs, "scores", "moved", compare="margin_before,ranking_difficulty")
    row = pick(report)[1].iloc[0]
    assert (row["both"], row["Jaccard"], row["Spearman"]) == (8, 1, pytest.approx(1))


def test_the_order_of_the_data_does_not_matter(runs, tmp_path):
    lines = (runs / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "again.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    plain = compare(runs, "scores", "influence", group_column="kind")
    again = compare(runs, "scores", "influence", group_column="kind", data=str(tmp_path / "again.jsonl"))
    counts = ["rule", "other", "both", "share", "Jaccard"]
    pd.testing.assert_frame_equal(pick(plain)[1][counts], pick(again)[1][counts])
    assert list(plain.tables) == list(again.tables)
    pd.testing.assert_frame_equal(*(list(report.tables.values())[3] for report in (plain, again)))


def test_pairs_without_a_score_in_some_run_are_left_out_and_counted(runs, tmp_path):
    status = ["truncated", *["ok"] * (COUNT - 1)]
    make_influence(tmp_path / "influence", runs / "scores", status=status, pilot_change=[0.0, np.nan, *range(2, COUNT)])
    report = compare(runs, "scores", tmp_path / "influence", compare="ches,pilot_change")
    assert report.facts["compared"] == COUNT - 2
    said = report.tables["Notes"]["note"].tolist()
    assert said[:2] == [
        "Left out of the comparison, since a run gives them no score: 1 pair",
        "Left out of the comparison, since a column of a rule has no number for them: 1 pair",
    ]
    assert report.tables["Pairs by status"].to_dict("list") == {"status": ["ok", "truncated"], "pairs": [31, 1]}


def test_pairs_of_one_token_are_left_out_where_a_rule_is_by_ches(runs, tmp_path):
    shutil.copytree(runs / "scores", tmp_path / "scores")
    table = table_of(runs, "scores")
    table.loc[:4, ["chosen_tokens", "rejected_tokens"]] = 1
    table.to_parquet(tmp_path / "mine.parquet")
    found = compare(runs, tmp_path / "mine.parquet", compare="ches_normalized,displacement_rate")
    assert found.facts["compared"] == COUNT - 5
    assert "5 pairs have responses of one token each" in " ".join(found.tables["Notes"]["note"])
    without = compare(runs, tmp_path / "mine.parquet", compare="edit_similarity,displacement_rate")
    assert without.facts["compared"] == COUNT


def test_a_column_of_two_runs_is_that_of_the_first_and_a_difference_is_told(runs, tmp_path):
    make_influence(tmp_path / "influence", runs / "scores", ches=np.arange(COUNT) * 1.0)
    same = compare(runs, "scores", "moved", compare="ches,margin_change")
    assert "Notes" not in same.tables or "other values" not in " ".join(same.tables["Notes"]["note"])
    other = compare(runs, "scores", tmp_path / "influence", compare="ches,joint_rate")
    assert other.tables["Notes"]["note"][0] == (
        f"ches has other values in {tmp_path / 'influence'}; those of {runs / 'scores'} are compared"
    )
    plain = compare(runs, "scores", "influence", compare="ches,joint_rate")
    pd.testing.assert_frame_equal(pick(plain)[1], pick(other)[1])


def test_a_rule_that_sorts_by_length_is_named(runs, tmp_path):
    table = table_of(runs, "scores")
    total = table["chosen_tokens"] + table["rejected_tokens"]
    make_influence(tmp_path / "influence", runs / "scores", pilot_change=-1.0 * total)
    report = compare(runs, "scores", tmp_path / "influence", compare="ches,pilot_change")
    said = "pilot_change:highest does little else here than to sort pairs by the number of their tokens"
    assert report.tables["Notes"]["note"].tolist() == [said]


def test_a_rule_by_a_column_of_one_value_is_named(runs, tmp_path):
    make_influence(
        tmp_path / "influence", runs / "scores", pilot_change=0.0 * table_of(runs, "scores")["chosen_tokens"]
    )
    report = compare(runs, "scores", tmp_path / "influence", compare="ches,pilot_change")
    said = report.tables["Notes"]["note"].tolist()
    left_out = report.facts["compared"] - report.facts["kept"]
    assert said[0].startswith(f"pilot_change:highest says nothing of {left_out} pairs that it leaves out")


def test_runs_over_other_pairs_are_refused(runs, tmp_path):
    lines = (runs / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    config = score.ScoreConfig(model="bundled", data=str(tmp_path / "fewer.jsonl"), out=tmp_path / "scores")
    score.run(config)
    with pytest.raises(SourceMismatch, match=r"scores: is of other pairs than .*moved; rules are compared"):
        compare(runs, "moved", tmp_path / "scores")
    with pytest.raises(SourceMismatch, match=r"fewer\.jsonl: these are not the pairs that were scored into .*moved"):
        compare(runs, "moved", data=str(tmp_path / "fewer.jsonl"))
    # A bare table is known by its ids alone.
    shutil.copy(tmp_path / "scores" / "scores.parquet", tmp_path / "bare.parquet")
    with pytest.raises(SourceMismatch, match=r"bare\.parquet: pairs and scores do not belong together"):
        compare(runs, "moved", tmp_path / "bare.parquet")


def test_the_data_are_read_as_the_first_run_with_a_record_read_them(runs, tmp_path):
    config = score.ScoreConfig(model="bundled", data=str(runs / "pairs.jsonl"), limit=20, out=tmp_path / "scores")
    score.run(config)
    shutil.copy(tmp_path / "scores" / "scores.parquet", tmp_path / "bare.parquet")
    found = compare(runs, tmp_path / "bare.parquet", tmp_path / "scores", compare="ches,edit_similarity")
    assert found.facts["compared"] == 20


def test_a_table_without_lengths_is_refused(runs, tmp_path):
    table_of(runs, "scores")[["id", "status", "ches", "edit_similarity"]].to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(UsageError, match=r"mine\.parquet: has no prompt_tokens, .*; name first a table that has them"):
        compare(runs, tmp_path / "mine.parquet")
    assert compare(runs, "scores", tmp_path / "mine.parquet", compare="ches,edit_similarity").facts["kept"] == 8


def test_a_group_column_must_be_there(runs):
    with pytest.raises(DataInvalid, match=r"line 1: has no 'sort'; it has id, kind"):
        compare(runs, "scores", group_column="sort")


BAD_OPTIONS = {
    "no share": (
        "--compare ches,edit_similarity",
        "--compare takes --keep, the share of the pairs that every rule keeps",
    ),
    "share": ("--compare ches,edit_similarity --keep 1.5", "--keep must be a share above 0 and below 1, not 1.5"),
    "everything": ("--compare ches,edit_similarity --keep 1", "--keep must be a share above 0 and below 1, not 1.0"),
    "nan": ("--compare ches,edit_similarity --keep nan", "--keep must be a number, not 'nan'"),
    "output": ("--compare all --keep .5 --out o", "--compare writes nothing and takes --keep; leave out --out"),
    "both": ("--compare all --keep .5 --by ches --keep-lowest .5", "leave out --by, --keep-lowest"),
    "bad": ("--compare all --keep .5 --bad drop --overwrite", "leave out --bad, --overwrite"),
    "keep alone": ("--by ches --out o --keep .5", "--keep belongs to --compare; a filter takes --by and --out"),
    "group alone": ("--by ches --out o --keep-lowest .5 --group-column kind", "--group-column belongs to --compare"),
    "nothing": ("", "--by and --out must be given, or --compare and --keep to compare rules"),
    "no output": ("--by ches --keep-lowest .5", "--out must be given, or --compare"),
    "runs": ("--scores moved --by ches --out o --keep-lowest .5", "several --scores belong to --compare"),
    "one rule": ("--compare ches --keep .5", "'ches' names 1 rule, and a comparison needs two"),
    "unknown": ("--compare ches,chess --keep .5", "there is no score column 'chess'; there are ches, ches_normalized"),
    "twice": ("--compare ches,ches --keep .5", "the rule ches:lowest is given twice"),
    "none": ("--compare all --keep .001", "a share of 0.001 of 32 pairs is none of them"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_contradict_each_other(probing, runs, case):
    given, message = BAD_OPTIONS[case]
    status, shown, errors = probing(
        "filter", "--data", runs / "pairs.jsonl", "--scores", runs / "scores", *given.split()
    )
    assert (status, shown) == (2, "")
    assert errors.startswith("probing filter: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_runs_may_stand_in_a_file_of_options(probing, runs, tmp_path):
    written = f"data: {runs / 'pairs.jsonl'}\nscores: ['{runs / 'scores'}', '{runs / 'moved'}']\nkeep: 0.5\n"
    (tmp_path / "options.yaml").write_text(written, encoding="utf-8")
    given = ["filter", "--config", tmp_path / "options.yaml", "--compare", "ches,margin_change"]
    status, shown, errors = probing(*given, "--print-config=skip_default")
    assert (status, errors) == (0, "")
    (tmp_path / "again.yaml").write_text(shown, encoding="utf-8")
    answers = [probing(*given), probing("filter", "--config", tmp_path / "again.yaml")]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


def test_the_command_prints_tables_and_json(probing, runs):
    given = ["filter", "--data", runs / "pairs.jsonl", "--scores", runs / "scores", "--scores", runs / "influence"]
    given += ["--compare", "ches_normalized,joint_rate,influence:lowest", "--keep", "0.5", "--group-column", "kind"]
    status, shown, errors = probing(*given)
    assert (status, errors) == (0, "")
    assert "Rules, each keeping 16 of 32 pairs" in shown
    status, shown, _ = probing(*given, "--json")
    answer = json.loads(shown)
    assert answer["rules"] == ["ches_normalized:lowest", "joint_rate:highest", "influence:lowest"]
    assert [len(table) for table in answer["tables"].values()][:4] == [1, 4, 3, 12]
