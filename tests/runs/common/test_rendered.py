"""Chat templates in whole runs: a refused conversation is one row's status, and two days' prompts never mix."""

import datetime
import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
from harness import write

from probing import score_pairs
from probing.errors import DataInvalid, SourceMismatch
from probing.runs import capture, displacement, score
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.states import check_same_request
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.score import stages
from probing.runs.score.config import ScoreConfig
from probing.store.activations import open_store

DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + tiny.TEMPLATE
REFUSING = "{% if 'boat' in messages[0].content %}{{ raise_exception('no boats') }}{% endif %}" + tiny.TEMPLATE
REWRITING = "{% if 'glue' in messages[0].content %}{{ messages | length }}{% endif %}" + REFUSING


def pair(number, prompt="near", **further):
    sides = (("prompt", "user", prompt), ("chosen", "assistant", "No."), ("rejected", "assistant", "Yes, always."))
    return {"id": f"r{number}", **{name: [{"role": role, "content": text}] for name, role, text in sides}, **further}


ROWS = [pair(0), pair(1, "boat"), pair(2), pair(3, "glue"), pair(4)]
ROWS[4]["prompt"].append({"role": "assistant", "content": "Yes"})
STATUSES = ["ok", "refused", "ok", "refused", "refused"]


@pytest.fixture
def on_day(monkeypatch):
    """Sets the day that templates are told."""

    def be(day):
        class Clock:
            @staticmethod
            def now():
                return datetime.datetime(2026, 11, day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return be


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    templates = {"dated": DATED, "refusing": REFUSING, "rewriting": REWRITING, "plain": tiny.TEMPLATE}
    return {
        name: str(tiny.save_model(root / name, tokenizer=tiny.make_tokenizer(template=template)))
        for name, template in templates.items()
    }


def test_score_gives_a_refused_conversation_a_status(folders, tmp_path):
    data = write(tmp_path / "pairs.jsonl", ROWS)
    report = score.run(ScoreConfig(model=folders["rewriting"], data=str(data), out=tmp_path / "out"))
    assert pd.read_parquet(tmp_path / "out/scores.parquet")["status"].tolist() == STATUSES
    details = {problem["id"]: problem["detail"] for problem in report.facts["problems"]}
    assert "no boats" in details["r1"]
    assert "writes the prompt differently" in details["r3"]
    assert "ends with a message of the assistant" in details["r4"]
    frame = score_pairs(tiny.make_model(tokenizer=tiny.make_tokenizer(template=REWRITING)), ROWS)
    assert frame["status"].tolist() == STATUSES


def test_a_run_of_refused_conversations_alone_is_an_error(folders, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [pair(0, "boat")])
    with pytest.raises(DataInvalid, match=r"no pair could be scored \(1 refused\).*no boats"):
        score.run(ScoreConfig(model=folders["refusing"], data=str(data), out=tmp_path / "out"))


@pytest.mark.parametrize(("before", "after"), [("plain", "rewriting"), ("rewriting", "plain"), ("rewriting",) * 2])
def test_displacement_leaves_out_what_either_template_refuses(folders, tmp_path, before, after):
    data = write(tmp_path / "pairs.jsonl", ROWS)
    options = {"reference": folders[before], "policy": folders[after], "data": str(data), "out": tmp_path / "out"}
    displacement.run(DisplacementConfig(**options))
    frame = pd.read_parquet(tmp_path / "out/displacement.parquet")
    assert frame["status"].tolist() == STATUSES
    assert frame["chosen_change"].notna().tolist() == [status == "ok" for status in STATUSES]


def stop_after(monkeypatch, shards):
    plain, made = stages._new_shard, []

    def make(*arguments):
        if len(made) == shards:
            raise KeyboardInterrupt
        made.append(plain(*arguments))
        return made[-1]

    monkeypatch.setattr(stages, "_new_shard", make)


def interrupt(config, monkeypatch):
    with monkeypatch.context() as within:
        stop_after(within, 1)
        with pytest.raises(KeyboardInterrupt):
            score.run(config)


@pytest.fixture
def config(folders, tmp_path):
    def make(rows, **changes):
        data = write(tmp_path / "pairs.jsonl", rows)
        options = {"model": folders["dated"], "data": str(data), "out": tmp_path / "out", "shard_pairs": 2}
        return ScoreConfig(**(options | changes))

    return make


CHATS = [pair(number, "near " * number) for number in range(1, 6)]


def test_an_interrupted_run_is_not_gone_on_with_on_another_day(config, on_day, monkeypatch, tmp_path):
    on_day(26)
    interrupt(config(CHATS), monkeypatch)
    on_day(27)
    with pytest.raises(SourceMismatch, match=r"chat template of the model writes other text .* today's date"):
        score.run(config(CHATS))
    on_day(26)
    assert score.run(config(CHATS)).facts["rows_by_status"] == {"ok": 5}
    before = (tmp_path / "out/run.json").read_bytes()
    # What is finished can be read on any day.
    on_day(27)
    assert score.run(config(CHATS)).facts["rows_by_status"] == {"ok": 5}
    assert (tmp_path / "out/run.json").read_bytes() == before


def test_a_record_without_the_rendered_text_is_gone_on_with(config, on_day, monkeypatch, tmp_path):
    on_day(26)
    interrupt(config(CHATS), monkeypatch)
    path = Path(tmp_path / "out/run.json")
    record = json.loads(path.read_text())
    assert list(record["identity"].pop("rendered")) == ["model"]
    path.write_text(json.dumps(record))
    on_day(27)
    assert score.run(config(CHATS)).facts["rows_by_status"] == {"ok": 5}


def test_text_and_fixed_dates_do_not_mind_the_day(config, on_day, monkeypatch, tmp_path):
    texts = [{"prompt": f"Q{number}", "chosen": " No", "rejected": " Never"} for number in range(5)]
    fixed = [{**row, "chat_template_kwargs": {"date_string": "1 Jan 2026"}} for row in CHATS]
    for name, rows in (("texts", texts), ("fixed", fixed)):
        on_day(26)
        interrupt(config(rows, out=tmp_path / name), monkeypatch)
        on_day(27)
        assert score.run(config(rows, out=tmp_path / name)).facts["rows_by_status"] == {"ok": 5}


def test_a_day_that_ends_while_the_run_is_on_is_said_and_recorded(config, on_day, monkeypatch, tmp_path, caplog):
    on_day(26)
    plain = stages._new_shard

    def make(*arguments):
        on_day(27)
        return plain(*arguments)

    monkeypatch.setattr(stages, "_new_shard", make)
    assert score.run(config(CHATS)).facts["rendered_changed"] is True
    assert "not all rows have the same prompt" in caplog.text
    assert "rendered_changed" not in score.run(config(CHATS, out=tmp_path / "other")).facts


def test_displacement_is_not_gone_on_with_on_another_day(folders, on_day, monkeypatch, tmp_path):
    data = write(tmp_path / "pairs.jsonl", CHATS)
    options = {"reference": folders["dated"], "policy": folders["dated"], "data": str(data), "out": tmp_path / "out"}
    on_day(26)
    with monkeypatch.context() as within:
        within.setattr(
            "probing.runs.displacement.stages.join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            displacement.run(DisplacementConfig(**options))
    on_day(27)
    with pytest.raises(SourceMismatch, match="chat template of the reference writes other text"):
        displacement.run(DisplacementConfig(**options))


def test_rows_of_another_day_are_not_added_to_a_store(folders, on_day, tmp_path):
    old = write(tmp_path / "old.jsonl", [{"id": "a", "text": "near"}])
    new = write(tmp_path / "new.jsonl", [{"id": "b", "text": "boat"}])
    options = {"model": folders["dated"], "places": "final_norm", "chat": True, "out": tmp_path / "out"}
    on_day(26)
    capture.run(CaptureConfig(data=str(old), **options))
    on_day(27)
    # Nothing is made, so nothing mixes.
    capture.run(CaptureConfig(data=str(old), **options))
    with pytest.raises(SourceMismatch, match="today's date"):
        capture.run(CaptureConfig(data=str(new), append=True, **options))
    on_day(26)
    report = capture.run(CaptureConfig(data=str(new), append=True, **options))
    assert report.facts["rows_by_status"] == {"ok": 2}


def test_stores_of_two_days_are_not_compared(folders, on_day, tmp_path):
    data = write(tmp_path / "rows.jsonl", [{"id": "a", "text": "near"}])
    options = {"model": folders["dated"], "places": "final_norm", "chat": True, "data": str(data)}
    stores = {}
    for name, day in (("first", 26), ("same", 26), ("next", 27)):
        on_day(day)
        capture.run(CaptureConfig(out=tmp_path / name, **options))
        stores[name] = open_store(tmp_path / name)
    check_same_request(stores["first"], stores["same"])
    with pytest.raises(SourceMismatch, match="the date of another day"):
        check_same_request(stores["first"], stores["next"])
    del stores["next"].facts["identity"]["rendered"]
    check_same_request(stores["first"], stores["next"])
