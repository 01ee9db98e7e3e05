"""Shards of an array and what joins them: byte for byte the run of one job, however the shards came about."""

import dataclasses
import json
import os
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from harness import as_options, count_shards, damage_end, kill, make_pairs, make_rollouts, note_calls, write

from probing import open_store
from probing.errors import FolderBusy, SourceMismatch, StoreCorrupt, UsageError
from probing.report.tables import render
from probing.runs import capture, displacement, filter, merge, report, rollouts, score, show
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.stages import Capturer
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.filter.config import FilterConfig
from probing.runs.merge import MergeConfig
from probing.runs.merge import states as merge_states
from probing.runs.report.config import ReportConfig
from probing.runs.rollouts.config import RolloutsConfig
from probing.runs.score.config import ScoreConfig
from probing.runs.show import ShowConfig
from probing.store.manifest import MANIFEST, RUN_FILE, claim

SHARDS = 7
OF_A_RUN = ("wall_seconds", "scoring_seconds", "tokens_per_second", "record_sha256")
"""What of a record is another time on the clock."""


@pytest.fixture(autouse=True)
def one_day(monkeypatch):
    """A run over midnight has the same bytes as one after it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Checkpoints of a training: 5 and 10, of which 5 gives pairs with a "!" no number."""
    folder = tmp_path_factory.mktemp("policies")
    for step in (5, 10):
        model = tiny.make_model()
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        if step == 5:
            bad = model.tokenizer("!", add_special_tokens=False)["input_ids"][0]
            model.model.model.embed_tokens.weight.data[bad] = float("inf")
        model.model.save_pretrained(folder / f"checkpoint-{step}")
        model.tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    return folder


def make_rows(count):
    """Pairs without ids, some with equal texts in other shards, one without a response."""
    rows = [{name: value for name, value in row.items() if name != "id"} for row in make_pairs(count)]
    rows[-1] |= {name: rows[0][name] for name in ("prompt", "chosen", "rejected")}
    rows[count // 2] |= {name: rows[0][name] for name in ("prompt", "chosen", "rejected")}
    rows[count // 3]["chosen"] = ""
    return [{**row, "n": number, "kind": "even" if number % 2 == 0 else "odd"} for number, row in enumerate(rows)]


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", make_rows(28))


@pytest.fixture
def scoring(model_folder, pairs, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(pairs), "out": tmp_path / "whole", "shard_pairs": 2}
        return ScoreConfig(**(values | changes))

    return make


def run_shards(job, config, folder, count=SHARDS):
    """The folders of all shards, made one after the other."""
    outs = [folder / f"shard-{number}" for number in range(count)]
    for number, out in enumerate(outs):
        job.run(dataclasses.replace(config, out=out, shard_index=number, num_shards=count))
    return outs


def run_merge(shards, out, **options):
    return merge.run(MergeConfig(folders=shards, out=out, **options))


def content(folder):
    """Every byte of a run, but for what its record says of time and place."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(files.pop(MANIFEST if MANIFEST in files else RUN_FILE))
    record["config"].pop("out")
    return {name: value for name, value in record.items() if name not in OF_A_RUN}, files


def assert_same_run(job, config, merged, reported):
    """The merged folder is that of the plain run, also to the job itself, and reports the same tables."""
    plain = job.run(config)
    record, files = content(config.out)
    found, others = content(merged)
    assert found == record
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == []
    assert render(reported.tables) == render(plain.tables)
    again = job.run(dataclasses.replace(config, out=merged))
    assert render(again.tables) == render(plain.tables)


def assert_close(one, other, name):
    left, right = (pd.read_parquet(folder / name) for folder in (one, other))
    pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-6, atol=1e-6)


def test_scores_with_pulls_and_log_probabilities_are_those_of_one_run(scoring, tmp_path, caplog):
    config = scoring(columns="all,displacement_rate", pull=True, write_ref_logps=True)
    shards = run_shards(score, config, tmp_path)
    before = [content(shard) for shard in shards]
    merged = tmp_path / "merged"
    reported = run_merge(shards[::-1], merged)
    assert_same_run(score, config, merged, reported)
    assert "holds this run, finished: its results are shown again" in caplog.text
    names = ["plots.html", "ref_logps.jsonl", RUN_FILE, "scores.parquet", "tokens.parquet"]
    assert sorted(path.name for path in merged.iterdir()) == names
    record = json.loads((merged / RUN_FILE).read_text())
    assert record["rows_by_status"] == {"empty_response": 1, "ok": 27}
    assert [(each["line"], each["status"]) for each in record["problems"]] == [("line 10", "empty_response")]
    seconds = sum(json.loads((shard / RUN_FILE).read_text())["scoring_seconds"] for shard in shards)
    assert record["scoring_seconds"] == pytest.approx(seconds)
    assert [content(shard) for shard in shards] == before


def test_more_problems_than_a_record_lists_are_counted(model_folder, tmp_path):
    """Of 240 pairs without a response, of which a record lists 100 and so does that of each shard."""
    rows = [{**row, "chosen": ""} if number % 5 else row for number, row in enumerate(make_pairs(300))]
    data = write(tmp_path / "pairs.jsonl", rows)
    config = ScoreConfig(model=str(model_folder), data=str(data), out=tmp_path / "whole", shard_pairs=150)
    shards = run_shards(score, config, tmp_path, 2)
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(score, config, tmp_path / "merged", reported)
    record = json.loads((tmp_path / "merged" / RUN_FILE).read_text())
    assert (len(record["problems"]), record["problems_in_all"]) == (100, 240)
    walls = sum(json.loads((shard / RUN_FILE).read_text())["wall_seconds"] for shard in shards)
    assert record["wall_seconds"] >= walls


def test_rows_keep_their_ids_and_their_places(scoring, tmp_path):
    """Equal texts are numbered over the whole dataset, so that the same row has the same id in every shard."""
    shards = run_shards(score, scoring(), tmp_path)
    score.run(scoring())
    whole = pd.read_parquet(tmp_path / "whole" / "scores.parquet")
    frames = [pd.read_parquet(shard / "scores.parquet") for shard in shards]
    assert [frame["row"].tolist() for frame in frames] == [list(range(4 * n, 4 * n + 4)) for n in range(SHARDS)]
    assert pd.concat(frames)["id"].tolist() == whole["id"].tolist()
    assert sum("-" in identity for identity in whole["id"]) == 2


def test_other_commands_read_what_was_merged(scoring, tmp_path, pairs):
    config = scoring()
    run_merge(run_shards(score, config, tmp_path), tmp_path / "merged")
    score.run(config)
    shown = [show.run(ShowConfig(folder=tmp_path / name, highest=3)).text for name in ("whole", "merged")]
    assert shown[0] == shown[1]
    for name in ("whole", "merged"):
        rule = {"by": "ches_normalized", "drop_highest": 0.2, "bad": "drop"}
        filter.run(FilterConfig(data=str(pairs), scores=tmp_path / name, out=tmp_path / f"{name}.jsonl", **rule))
        report.run(ReportConfig(folders=[tmp_path / name], out=tmp_path / f"{name}.html", title="t"))
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "merged.jsonl").read_bytes()
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("whole", "merged")]
    assert all(identity in page for page in pages for identity in shown[0].split("\n")[0].split(",")[:1])


def test_a_shard_is_shown_and_is_no_run_of_all_pairs(scoring, tmp_path, pairs):
    shards = run_shards(score, scoring(), tmp_path, 2)
    assert show.run(ShowConfig(folder=shards[1], lowest=1)).facts["pairs"][0]["row"] >= 14
    report.run(ReportConfig(folders=[shards[1]], out=tmp_path / "one.html"))
    config = FilterConfig(data=str(pairs), scores=shards[1], by="ches", below=0.0, out=tmp_path / "kept.jsonl")
    with pytest.raises(SourceMismatch, match="holds shard 1 of 2 of its dataset, not all of its pairs; join"):
        filter.run(config)
    with pytest.raises(SourceMismatch, match=r"options\.shard_index was 1, is None"):
        score.run(scoring(out=shards[1]))


@pytest.mark.parametrize("with_steps", [False, True])
def test_changes_are_those_of_one_run(model_folder, policies, pairs, tmp_path, with_steps):
    values = {"steps": policies} if with_steps else {"policy": str(policies / "checkpoint-10")}
    values |= {"reference": str(model_folder), "data": str(pairs), "out": tmp_path / "whole", "shard_pairs": 4}
    config = DisplacementConfig(**values, group_column="kind")
    shards = run_shards(displacement, config, tmp_path)
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(displacement, config, tmp_path / "merged", reported)
    assert (tmp_path / "merged" / "course.parquet").exists() == with_steps


def test_a_step_that_only_one_shard_cannot_read_is_no_broken_one(model_folder, policies, tmp_path):
    """All pairs of the second shard of two have a token for which step 5 gives no number."""
    rows = make_pairs(12)
    for row in rows[6:]:
        row["chosen"] += "!"
    data = write(tmp_path / "pairs.jsonl", rows)
    values = {"reference": str(model_folder), "steps": policies, "data": str(data), "out": tmp_path / "whole"}
    config = DisplacementConfig(**values, shard_pairs=6)
    shards = run_shards(displacement, config, tmp_path, 2)
    broken = [json.loads((shard / RUN_FILE).read_text())["broken_steps"] for shard in shards]
    assert [len(each) for each in broken] == [0, 1]
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(displacement, config, tmp_path / "merged", reported)
    course = pd.read_parquet(tmp_path / "merged" / "course.parquet")
    assert course.groupby("step")["id"].nunique().to_dict() == {0: 6, 5: 6, 10: 6}


def test_rates_of_rollouts_are_those_of_one_run(model_folder, tmp_path):
    rows = [{name: value for name, value in row.items() if name != "id"} for row in make_rollouts(14)]
    data = write(tmp_path / "rollouts.jsonl", rows)
    config = RolloutsConfig(model=str(model_folder), data=str(data), out=tmp_path / "whole", shard_groups=2)
    reported = run_merge(run_shards(rollouts, config, tmp_path), tmp_path / "merged")
    assert_same_run(rollouts, config, tmp_path / "merged", reported)


@pytest.fixture
def capturing(model_folder, tmp_path):
    rows = [
        {"text": row["prompt"], "label": number if number < 20 else number / 4}
        for number, row in enumerate(make_pairs(28))
    ]
    rows[5]["text"] = ""
    data = write(tmp_path / "texts.jsonl", rows)

    def make(**changes):
        values = {"model": str(model_folder), "data": str(data), "out": tmp_path / "whole", "shard_rows": 2}
        return CaptureConfig(**(values | {"places": "resid_post:all,final_norm"} | changes))

    return make


@pytest.mark.parametrize("pooling", ["last", "tokens"])
def test_a_store_is_that_of_one_run(capturing, tmp_path, pooling):
    """The labels of the first shards are whole numbers; those of all rows are not."""
    config = capturing(pooling=pooling)
    shards = run_shards(capture, config, tmp_path)
    before = [content(shard) for shard in shards]
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(capture, config, tmp_path / "merged", reported)
    stores = [open_store(tmp_path / name) for name in ("whole", "merged")]
    assert stores[1].verify() == []
    assert torch.equal(stores[0].activations().values, stores[1].activations().values)
    assert [content(shard) for shard in shards] == before
    first = os.stat(shards[3] / "shards" / "000000.safetensors").st_ino
    assert os.stat(tmp_path / "merged" / "shards" / "000006.safetensors").st_ino == first


def test_a_store_of_pairs_keeps_both_responses_of_a_pair_together(model_folder, pairs, tmp_path):
    config = CaptureConfig(model=str(model_folder), data=str(pairs), out=tmp_path / "whole", places="final_norm")
    shards = run_shards(capture, config, tmp_path, 3)
    assert [len(open_store(shard).rows) for shard in shards] == [18, 18, 20]
    run_merge(shards, tmp_path / "merged")
    capture.run(config)
    stores = [open_store(tmp_path / name) for name in ("whole", "merged")]
    left, right = (store.rows.drop(columns="shard") for store in stores)
    pd.testing.assert_frame_equal(left, right)
    torch.testing.assert_close(stores[0].activations().values, stores[1].activations().values, rtol=1e-5, atol=1e-6)


def test_a_store_whose_shards_are_of_other_lengths_is_known_and_repaired(capturing, tmp_path, monkeypatch):
    config = capturing(shard_rows=6)
    merged = tmp_path / "merged"
    run_merge(run_shards(capture, config, tmp_path, 3), merged)
    assert json.loads((merged / MANIFEST).read_text())["data"][0]["blocks"] == [6, 3, 6, 3, 6, 4]
    calls = note_calls(monkeypatch, Capturer, "read")
    capture.run(dataclasses.replace(config, out=merged))
    assert calls == []
    before = open_store(merged).activations().values
    damage_end(merged / "shards" / "000001.safetensors")
    assert open_store(merged).verify() == ["shards/000001.safetensors is damaged"]
    capture.run(dataclasses.replace(config, out=merged, repair=True))
    assert len(calls) == 1
    assert torch.equal(open_store(merged).activations().values, before)
    assert open_store(merged).verify() == []


def test_states_are_copied_where_no_link_can_be_made(capturing, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    shards = run_shards(capture, capturing(), tmp_path, 2)
    monkeypatch.setattr(merge_states.os, "link", refuse)
    run_merge(shards, tmp_path / "merged")
    assert open_store(tmp_path / "merged").verify() == []
    assert os.stat(tmp_path / "merged" / "shards" / "000000.safetensors").st_nlink == 1


def test_shards_that_cut_parts_in_two_give_the_same_to_rounding(scoring, tmp_path):
    """Of 28 rows in five shards, with parts of eight rows: other batches, so that last digits may differ."""
    config = scoring(columns="all,displacement_rate", pull=True, shard_pairs=8)
    run_merge(run_shards(score, config, tmp_path, 5), tmp_path / "merged")
    score.run(config)
    for name in ("scores.parquet", "tokens.parquet"):
        assert_close(tmp_path / "whole", tmp_path / "merged", name)


def test_limit_and_sample_are_taken_before_the_rows_are_cut(scoring, tmp_path):
    config = scoring(sample=9)
    shards = run_shards(score, config, tmp_path, 4)
    assert [len(pd.read_parquet(shard / "scores.parquet")) for shard in shards] == [2, 2, 2, 3]
    run_merge(shards, tmp_path / "merged")
    score.run(config)
    assert_close(tmp_path / "whole", tmp_path / "merged", "scores.parquet")


@pytest.mark.parametrize("command", ["score", "displacement", "rollouts", "capture"])
def test_more_shards_than_rows_make_empty_ones(model_folder, policies, tmp_path, command):
    pairs, groups = write(tmp_path / "p.jsonl", make_pairs(3)), write(tmp_path / "g.jsonl", make_rollouts(3))
    job, make, values = {
        "score": (score, ScoreConfig, {"model": str(model_folder), "columns": "all,regime", "pull": True}),
        "displacement": (displacement, DisplacementConfig, {"reference": str(model_folder), "steps": policies}),
        "rollouts": (rollouts, RolloutsConfig, {"model": str(model_folder)}),
        "capture": (capture, CaptureConfig, {"model": str(model_folder), "places": "final_norm", "shard_rows": 2}),
    }[command]
    size = {"score": "shard_pairs", "displacement": "shard_pairs", "rollouts": "shard_groups"}.get(command)
    values |= {size: 1} if size else {}
    data = groups if command == "rollouts" else pairs
    config = make(data=str(data), out=tmp_path / "whole", **values)
    shards = run_shards(job, config, tmp_path, 5)
    record = json.loads((shards[0] / (MANIFEST if command == "capture" else RUN_FILE)).read_text())
    assert (record["status"], record["rows_by_status"]) == ("done", {})
    assert render(job.run(dataclasses.replace(config, out=shards[0], shard_index=0, num_shards=5)).tables)
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(job, config, tmp_path / "merged", reported)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_shard_that_was_killed_is_finished_and_merged(scoring, tmp_path):
    config = scoring(shard_pairs=1, columns="all")
    values = {name: getattr(config, name) for name in ("model", "data", "shard_pairs", "columns")}
    shards = run_shards(score, config, tmp_path)
    shutil.rmtree(shards[2])
    values |= {"out": shards[2], "shard_index": 2, "num_shards": SHARDS}
    kill("score", values, tmp_path / "said", lambda: count_shards(shards[2]))
    with pytest.raises(UsageError, match="shard-2: the run in it is not finished; run the same 'probing score' again"):
        run_merge(shards, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    score.run(dataclasses.replace(config, out=shards[2], shard_index=2, num_shards=SHARDS))
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(score, config, tmp_path / "merged", reported)


def test_a_merge_that_was_interrupted_is_finished(capturing, tmp_path, monkeypatch):
    config = capturing()
    shards = run_shards(capture, config, tmp_path)
    with monkeypatch.context() as patch:
        note_calls(patch, merge_states, "_put_shard", 5)
        with pytest.raises(KeyboardInterrupt):
            run_merge(shards, tmp_path / "merged")
    assert count_shards(tmp_path / "merged") == 5
    reported = run_merge(shards, tmp_path / "merged")
    assert_same_run(capture, config, tmp_path / "merged", reported)
    again = run_merge(shards, tmp_path / "merged")
    assert render(again.tables) == render(reported.tables)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["scores.parquet", "tokens.parquet"])
def test_a_damaged_table_of_a_shard_is_named(scoring, tmp_path, name):
    shards = run_shards(score, scoring(pull=True), tmp_path, 3)
    damage_end(shards[1] / name)
    with pytest.raises(StoreCorrupt, match=rf"shard-1/{name}: gone or changed since the run ended"):
        run_merge(shards, tmp_path / "merged")
    (shards[1] / name).unlink()
    with pytest.raises(StoreCorrupt, match=rf"shard-1/{name}: gone or changed since the run ended"):
        run_merge(shards, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["shards/000000.safetensors", "shards/000001.parquet", "rows.parquet"])
def test_a_damaged_file_of_a_store_is_named(capturing, tmp_path, name):
    shards = run_shards(capture, capturing(), tmp_path, 3)
    damage_end(shards[1] / name)
    with pytest.raises(StoreCorrupt, match=rf"shard-1/{name}: .*(damaged|changed).* --repair, then merge"):
        run_merge(shards, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_damaged_record_of_a_shard_is_named(scoring, tmp_path):
    shards = run_shards(score, scoring(), tmp_path, 2)
    text = (shards[0] / RUN_FILE).read_text()
    (shards[0] / RUN_FILE).write_text(text.replace('"rows": 14', '"rows": 15'))
    with pytest.raises(StoreCorrupt, match=r"shard-0/run\.json: damaged"):
        run_merge(shards, tmp_path / "merged")
    (shards[0] / RUN_FILE).write_text(text.replace('"num_shards": 2', '"num_shards": 0'))
    with pytest.raises(StoreCorrupt, match="shard-0: the options in its record are damaged"):
        run_merge(shards, tmp_path / "merged")


@pytest.fixture
def three(scoring, tmp_path):
    return run_shards(score, scoring(), tmp_path, 3)


def test_missing_shards_and_shards_given_twice_are_named(three, tmp_path):
    with pytest.raises(UsageError, match="of 3 shards these are missing: 1; make them"):
        run_merge([three[2], three[0]], tmp_path / "merged")
    shutil.copytree(three[1], tmp_path / "again")
    with pytest.raises(UsageError, match=r"again and .*shard-1: both hold shard 1 of 3"):
        run_merge([*three[::2], tmp_path / "again", three[1]], tmp_path / "merged")
    with pytest.raises(UsageError, match="shard-1: is named twice"):
        run_merge([*three, three[1]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_shards_of_another_run_are_named_with_what_differs(scoring, three, tmp_path, pairs):
    def with_foreign(**changes):
        out = tmp_path / "foreign"
        shutil.rmtree(out, ignore_errors=True)
        score.run(scoring(**{"out": out, "shard_index": 1, "num_shards": 3, **changes}))
        run_merge([three[0], out, three[2]], tmp_path / "merged")

    with pytest.raises(SourceMismatch, match=r"foreign: is no shard of .*shard-0 .*: options\.eos is False here"):
        with_foreign(eos=False)
    with pytest.raises(SourceMismatch, match=r"num_shards is 4 here and 3 there"):
        with_foreign(num_shards=4)
    with pytest.raises(SourceMismatch, match=r"model\.weights_sha256 is"):
        with_foreign(model=str(tiny.save_model(tmp_path / "other", seed=3)))
    changed = write(tmp_path / "other.jsonl", make_rows(27))
    with pytest.raises(SourceMismatch, match=r"data\.sha256 is"):
        with_foreign(data=str(changed))
    with pytest.raises(SourceMismatch, match=r"foreign: its rows are not those of shard 1 of 3"):
        with_foreign(id_column="n")
    assert not (tmp_path / "merged").exists()


def test_other_versions_are_named(three, tmp_path):
    path = three[1] / RUN_FILE
    record = json.loads(path.read_text())
    record["identity"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with pytest.raises(SourceMismatch, match=r"shard-1: .*: versions\.torch is 1\.0 here and"):
        run_merge(three, tmp_path / "merged")


def test_templates_of_two_days_are_named(three, tmp_path):
    for number, sha256 in enumerate("aab"):
        path = three[number] / RUN_FILE
        record = json.loads(path.read_text())
        record["identity"]["rendered"] = {"model": {"{}": sha256}}
        path.write_text(json.dumps(record))
    with pytest.raises(SourceMismatch, match="shard-2: the chat template of the model wrote other text"):
        run_merge(three, tmp_path / "merged")


def test_conversations_are_merged_with_what_their_templates_wrote(model_folder, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "chat_template_kwargs": {"n": number // 2},
        }
        for number, row in enumerate(make_pairs(6))
    ]
    data = write(tmp_path / "talk.jsonl", rows)
    config = ScoreConfig(model=str(model_folder), data=str(data), out=tmp_path / "whole", shard_pairs=1)
    reported = run_merge(run_shards(score, config, tmp_path, 8), tmp_path / "merged")
    assert_same_run(score, config, tmp_path / "merged", reported)
    assert len(json.loads((tmp_path / "merged" / RUN_FILE).read_text())["identity"]["rendered"]["model"]) == 3


def test_what_is_no_shard_is_named(scoring, three, tmp_path, capturing):
    score.run(scoring())
    with pytest.raises(SourceMismatch, match="whole: holds a run of 'probing score' that is no shard of an array"):
        run_merge([*three, tmp_path / "whole"], tmp_path / "merged")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceMismatch, match=r"empty: holds no run\.json"):
        run_merge([*three, tmp_path / "empty"], tmp_path / "merged")
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        run_merge([*three, tmp_path / "nowhere"], tmp_path / "merged")
    capture.run(capturing(out=tmp_path / "states", shard_index=1, num_shards=3))
    with pytest.raises(SourceMismatch, match=r"states: is no shard .*: command is capture here and score there"):
        run_merge([three[0], tmp_path / "states", three[2]], tmp_path / "merged")


def test_an_output_folder_that_is_in_use_is_refused(scoring, three, tmp_path):
    with pytest.raises(UsageError, match="shard-0: holds shard 0, which stays as it is; choose another --out"):
        run_merge(three, three[0])
    with claim(tmp_path / "merged", "score"), pytest.raises(FolderBusy, match="another process is writing there"):
        run_merge(three, tmp_path / "merged")
    score.run(scoring(eos=False))
    with pytest.raises(SourceMismatch, match=r"holds a run that was made from something else: options\.eos was False"):
        run_merge(three, tmp_path / "whole")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(SourceMismatch, match="notes: is not empty and holds no run"):
        run_merge(three, tmp_path / "notes")


def test_a_dataset_that_moved_is_named_with_data(three, tmp_path, pairs):
    moved = tmp_path / "moved.jsonl"
    pairs.rename(moved)
    with pytest.raises(Exception, match=r"pairs\.jsonl: no such file"):
        run_merge(three, tmp_path / "merged")
    other = write(tmp_path / "other.jsonl", make_rows(27))
    with pytest.raises(SourceMismatch, match=r"other\.jsonl: is not the dataset that .*shard-0 was made from"):
        run_merge(three, tmp_path / "merged", data=str(other))
    run_merge(three, tmp_path / "merged", data=str(moved))
    assert len(pq.read_table(tmp_path / "merged" / "scores.parquet")) == 28


def test_refusals_are_one_line_with_status_2(probing, three, tmp_path):
    given = [*three[:2], f"--out={tmp_path / 'merged'}"]
    status, out, errors = probing("merge", *given)
    assert (status, out) == (2, "")
    assert errors == "probing merge: of 3 shards these are missing: 2; make them, and name their folders\n"
    status, out, _ = probing("merge", *three, f"--out={tmp_path / 'merged'}", "--json")
    assert status == 0
    assert json.loads(out)["rows_by_status"] == {"empty_response": 1, "ok": 27}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_index": 1}, "give both of shard_index and num_shards, or neither"),
        ({"num_shards": 3}, "give both of shard_index and num_shards, or neither"),
        ({"shard_index": 3, "num_shards": 3}, "of num_shards 3 the last is 2, not 3"),
        ({"shard_index": -1, "num_shards": 3}, "shard_index must be at least 0, not -1"),
        ({"shard_index": 0, "num_shards": 0}, "num_shards must be at least 1, not 0"),
    ],
)
def test_a_shard_that_cannot_be(scoring, capturing, options, message):
    with pytest.raises(ValueError, match=message):
        scoring(**options)
    with pytest.raises(ValueError, match="leave out --append"):
        capturing(append=True, shard_index=0, num_shards=2)


def test_every_row_is_in_one_shard(scoring):
    for count in (0, 1, 6, 7, 8, 100):
        blocks = [scoring(shard_index=number, num_shards=SHARDS).choose_rows(count) for number in range(SHARDS)]
        assert [row for block in blocks for row in block] == list(range(count))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_the_command_line_takes_the_shard_and_names_no_command_for_all_pairs(probing, scoring, tmp_path):
    config = scoring()
    values = {"model": config.model, "data": config.data, "out": tmp_path / "one", "shard-index": 1, "num-shards": 2}
    status, _, errors = probing("score", *as_options(values))
    assert (status, "next:" in errors) == (0, False)
    assert len(pd.read_parquet(tmp_path / "one" / "scores.parquet")) == 14
