import gzip
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from harness import count_shards, kill, note_calls, override, phrase, read_lines, write
from safetensors import SafetensorError, safe_open

from probing import Capture, Place, capture, load, open_store
from probing.data.places import expand_places
from probing.errors import DataInvalid, FolderBusy, LayerNotFound, NotFinite, SourceMismatch, StoreCorrupt, UsageError
from probing.runs import capture as job
from probing.runs.capture import stages
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.data import read_data
from probing.store import activations
from probing.store.manifest import MANIFEST, claim


def make_rows(count, seed=0, first=0):
    generator = random.Random(seed)
    return [
        {
            "id": f"r{n}",
            "text": phrase(generator, 1, 40),
            "label": n % 2 == 0,
            "category": f"c{n % 3}",
        }
        for n in range(first, first + count)
    ]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "texts.jsonl", make_rows(30))


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {
            "model": str(model_folder),
            "data": str(data),
            "out": tmp_path / "out",
            "places": "resid_post:all,final_norm",
            "shard_rows": 8,
        }
        return CaptureConfig(**(values | changes))

    return make


def content(folder):
    """Every byte of a store, but for what a run says of time and place."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop(MANIFEST))
    manifest.pop("wall_seconds")
    manifest.pop("record_sha256")  # of the two others too
    for source in manifest["data"]:
        source.pop("path")
    manifest["config"] = {key: manifest["config"][key] for key in ("model", "places", "shard_rows")}
    return manifest, files


def states(folder, number):
    return folder / "shards" / f"{number:06d}.safetensors"


@pytest.mark.parametrize(
    ("given", "layers", "expected"),
    [
        ("resid_post:3", 4, ["resid_post:3"]),
        (" resid_post:-1 , final_norm", 4, ["resid_post:3", "final_norm"]),
        ("resid_post:all,resid_post:-1", 2, ["resid_post:0", "resid_post:1"]),
        ("resid_post:1..400000000", 2, ["resid_post:1", "resid_post:2"]),
        ("resid_post:-9", 2, ["resid_post:-9"]),
        ("mlp_out:1..2", 4, ["mlp_out:1", "mlp_out:2"]),
        (["resid_pre:all", "resid_pre:0"], 2, ["resid_pre:0", "resid_pre:1"]),
    ],
)
def test_places_in_short(given, layers, expected):
    assert list(map(str, expand_places(given, layers))) == expected


@pytest.mark.parametrize(
    "given", ["", "resid_post", "resid:1", "resid_post:2..1", "resid_post:-1..2", "final_norm:1", []]
)
def test_places_that_are_none(given):
    for layers in (4, None):
        with pytest.raises(ValueError, match=r"written resid_post:3|from the lower|at least one place"):
            expand_places(given, layers)


def test_a_store_holds_what_capture_returns(config, tmp_path, model_folder, data):
    report = job.run(config())
    assert report.facts["rows_by_status"] == {"ok": 30}
    store = open_store(tmp_path / "out")
    rows = read_lines(data)
    request = Capture([Place("resid_post", layer) for layer in range(3)] + [Place("final_norm")])
    expected = capture(load(str(model_folder)), rows, request)
    assert store.places == expected.places
    assert store.ids == expected.ids
    assert torch.equal(store.activations().values, expected.values)
    assert torch.equal(store.read("resid_post:-2"), expected.at(Place("resid_post", 1)))
    assert store.source.weights_sha256 == expected.source.weights_sha256
    frame = store.rows
    assert frame["id"].tolist() == [row["id"] for row in rows]
    assert frame["label"].tolist() == [row["label"] for row in rows]
    assert frame["category"].tolist() == [row["category"] for row in rows]
    assert frame["shard"].tolist() == [n // 8 for n in range(30)]
    assert store.verify() == []
    with pytest.raises(UsageError, match="attn_out:1 was not captured; there are resid_post:0, resid_post:1"):
        store.read(Place("attn_out", 1))


def test_every_token_is_stored_with_its_row(config, tmp_path, model_folder, data):
    job.run(config(pooling="tokens", places="resid_post:1", over="content"))
    found = open_store(tmp_path / "out").activations()
    rows = read_lines(data)
    expected = capture(load(str(model_folder)), rows, Capture([Place("resid_post", 1)], "tokens", "content"))
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.row("r7"), expected.row("r7"))


def test_one_layer_is_read_without_the_others(config, tmp_path):
    job.run(config())
    for path in (tmp_path / "out" / "shards").glob("*.safetensors"):
        damage(path, "resid_post:2")
    store = open_store(tmp_path / "out")
    assert len(store.read("resid_post:1")) == 30
    with pytest.raises(StoreCorrupt, match=r"000000\.safetensors: resid_post:2 in it changed"):
        store.read("resid_post:2")


def damage(path, name):
    """Flip one byte of one tensor."""
    bytes_ = bytearray(path.read_bytes())
    header = int.from_bytes(bytes_[:8], "little")
    offset = json.loads(bytes_[8 : 8 + header])[name]["data_offsets"][0]
    bytes_[8 + header + offset + 1] ^= 1
    path.write_bytes(bytes_)


def test_every_row_is_accounted_for(config, tmp_path, data):
    write(data, [*make_rows(5), {"id": "blank", "text": " "}, {"id": "long", "text": "near " * 600}])
    report = job.run(config())
    assert report.facts["rows_by_status"] == {"empty_text": 1, "ok": 5, "too_long": 1}
    store = open_store(tmp_path / "out")
    assert len(store.read("final_norm")) == 5
    assert store.rows.set_index("id")["status"][["blank", "long"]].tolist() == ["empty_text", "too_long"]
    assert {problem.id for problem in store.activations().problems} == {"blank", "long"}


def test_no_row_that_could_be_read(config, data):
    write(data, [{"id": "blank", "text": " "}])
    with pytest.raises(
        DataInvalid, match=r"no row could be read .1 empty_text.; the first: id 'blank': the text is empty"
    ):
        job.run(config())


def test_a_layer_with_nan_is_named_with_the_row(config, tmp_path):
    model = tiny.make_model()
    model.model.model.layers[1].mlp.up_proj.weight.data[:] = float("nan")
    model.model.save_pretrained(tmp_path / "broken")
    model.tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(NotFinite, match="id 'r0': states are NaN or infinite from layer 1 on"):
        job.run(config(model=str(tmp_path / "broken")))
    shutil.rmtree(tmp_path / "out")
    assert job.run(config(model=str(tmp_path / "broken"), places="resid_post:0")).facts["rows_by_status"] == {"ok": 30}


def test_an_unknown_layer_leaves_no_folder(config, tmp_path):
    with pytest.raises(LayerNotFound, match="has 3 layers, 0 to 2"):
        job.run(config(places="resid_post:5"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_lost_shard_of_a_finished_store_is_named_and_made_again_alone(config, tmp_path, number, change):
    job.run(config())
    expected = content(tmp_path / "out")
    change(states(tmp_path / "out", number))
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("*.safetensors")}
    others.pop(states(tmp_path / "out", number), None)
    assert open_store(tmp_path / "out").verify()[0].startswith(f"shards/{number:06d}.safetensors is ")
    with pytest.raises(StoreCorrupt, match=rf"{number:06d}\.safetensors: (missing|damaged) .1 of 4 shards.*--repair"):
        job.run(config())
    job.run(config(repair=True))
    assert content(tmp_path / "out") == expected
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert open_store(tmp_path / "out").verify() == []


def test_a_flipped_byte_is_repaired(config, tmp_path):
    job.run(config())
    expected = content(tmp_path / "out")
    damage(states(tmp_path / "out", 1), "final_norm")
    assert open_store(tmp_path / "out").verify() == ["shards/000001.safetensors is damaged"]
    job.run(config(repair=True))
    assert content(tmp_path / "out") == expected


def test_lost_rows_are_joined_again(config, tmp_path):
    job.run(config())
    expected = content(tmp_path / "out")
    (tmp_path / "out" / "rows.parquet").unlink()
    with pytest.raises(StoreCorrupt, match=r"rows\.parquet: gone or unreadable"):
        _ = open_store(tmp_path / "out").rows
    job.run(config())
    assert content(tmp_path / "out") == expected
    path = tmp_path / "out" / "rows.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StoreCorrupt, match=r"rows\.parquet: changed since"):
        _ = open_store(tmp_path / "out").ids


def test_rows_are_appended(config, tmp_path, model_folder):
    more = write(tmp_path / "more.jsonl", [*make_rows(4), *make_rows(13, seed=1, first=30)])
    job.run(config())
    with pytest.raises(SourceMismatch, match=r"holds states of other rows.*add new rows with --append"):
        job.run(config(data=str(more)))
    report = job.run(config(data=str(more), append=True))
    assert report.facts["rows_by_status"] == {"ok": 43}
    store = open_store(tmp_path / "out")
    assert store.ids == tuple(f"r{n}" for n in range(43))
    rows = [*make_rows(30), *make_rows(13, seed=1, first=30)]
    expected = capture(load(str(model_folder)), rows, Capture(list(store.places)))
    assert torch.allclose(store.activations().values, expected.values, rtol=1e-5, atol=1e-5)
    before = content(tmp_path / "out")
    job.run(config(data=str(more), append=True))  # nothing is new
    job.run(config())
    assert content(tmp_path / "out") == before
    damage(states(tmp_path / "out", 0), "final_norm")
    damage(states(tmp_path / "out", 5), "final_norm")
    with pytest.raises(StoreCorrupt, match=r"000000\.safetensors: damaged.*made from .*texts.jsonl"):
        job.run(config(data=str(more), append=True, repair=True))
    job.run(config(repair=True))
    assert content(tmp_path / "out") == before


def test_an_addition_that_fails_leaves_the_store_as_it_was(config, tmp_path, monkeypatch):
    """It can be read meanwhile, finished later, or given up for another."""
    job.run(config())
    before, known = open_store(tmp_path / "out"), open_store(tmp_path / "out").ids
    more = write(tmp_path / "more.jsonl", make_rows(20, seed=1, first=30))
    plain, calls = stages.write_states, []

    def failing(path, states):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        return plain(path, states)

    monkeypatch.setattr(stages, "write_states", failing)
    with pytest.raises(OSError, match="No space left"):
        job.run(config(data=str(more), append=True))
    monkeypatch.undo()
    assert open_store(tmp_path / "out").ids == known
    assert torch.equal(open_store(tmp_path / "out").read("final_norm"), before.read("final_norm"))
    job.run(config())  # nothing to do
    other = write(tmp_path / "other.jsonl", make_rows(9, seed=2, first=60))
    job.run(config(data=str(other), append=True))
    assert open_store(tmp_path / "out").ids == (*known, *(f"r{n}" for n in range(60, 69)))
    job.run(config(data=str(more), append=True))
    assert len(open_store(tmp_path / "out").ids) == 30 + 9 + 20
    with pytest.raises(StoreCorrupt, match="if rows were added, open it again"):
        _ = before.rows
    assert open_store(tmp_path / "out").verify() == []


def test_an_unfinished_run_on_other_rows_is_not_taken_over(config, tmp_path, data, monkeypatch):
    monkeypatch.setattr(stages, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.run(config())
    monkeypatch.undo()
    write(data, make_rows(31))
    with pytest.raises(SourceMismatch, match="holds an unfinished run on other rows"):
        job.run(config())
    write(data, make_rows(30))
    job.run(config())


def test_other_labels_are_other_rows(config, data):
    job.run(config())
    write(data, [{**row, "label": not row["label"]} for row in make_rows(30)])
    with pytest.raises(SourceMismatch, match="holds states of other rows, or of these with other labels"):
        job.run(config(repair=True))


@pytest.mark.parametrize("label", [2**70, "x"])
def test_labels_that_fit_together_or_not(config, tmp_path, data, label):
    write(data, [{"id": "a", "text": "near", "label": label}, {"id": "b", "text": "near", "label": 1}])
    if label == "x":
        job.run(config())
        assert open_store(tmp_path / "out").rows["label"].tolist() == ["x", "1"]
    else:
        with pytest.raises(UsageError, match="the labels cannot be written as int64"):
            job.run(config())


def test_rows_that_the_template_refuses_do_not_stop_the_others(config, tmp_path, data):
    answered = [{"role": "user", "content": "near"}, {"role": "assistant", "content": "boat"}]
    rows = [
        {"id": "a", "text": "<|bos|><|bos|>near"},
        {"id": "b", "text": answered, "response": "x"},
        {"id": "c", "text": "near"},
        {"id": "d", "text": [{"role": "user", "content": None, "tool_calls": [{}]}], "response": "x"},
    ]
    write(data, rows)
    report = job.run(config())
    assert report.facts["rows_by_status"] == {"ok": 1, "refused": 2, "two_bos": 1}


def test_a_disk_that_is_full_is_an_os_error(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(activations, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        activations.write_states(tmp_path / "x", {"a": torch.zeros(2)})
    assert caught.value.errno == 28
    assert not list(tmp_path.iterdir())


def test_the_hash_of_one_number_with_a_wide_stride():
    for rows in (1, 3):
        assert activations.tensor_sha256(torch.ones(rows, 4)[:, 0]) == activations.tensor_sha256(torch.ones(rows))


def test_states_with_metadata_are_the_same_bytes_each_time(tmp_path):
    for number in range(20):
        activations.write_states(tmp_path / str(number), {"a": torch.zeros(2)}, {"probing": "x"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_another_dtype_in_the_header_is_found(config, tmp_path):
    job.run(config(values_dtype="float16"))
    path = states(tmp_path / "out", 0)
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"I16"'))
    with pytest.raises(StoreCorrupt, match="in it changed"):
        open_store(tmp_path / "out").read("final_norm")


def test_a_damaged_manifest_is_named(config, tmp_path):
    job.run(config())
    (tmp_path / "out" / MANIFEST).write_text('{"status": "done"}')
    with pytest.raises(StoreCorrupt, match=r"manifest\.json: damaged, or written by another version"):
        open_store(tmp_path / "out")


def test_what_does_not_belong_is_not_appended(config, tmp_path):
    job.run(config())
    before = content(tmp_path / "out")
    other = write(tmp_path / "other.jsonl", [{**row, "text": "glue"} for row in make_rows(3)])
    with pytest.raises(SourceMismatch, match="there is another row with the id 'r0' in it"):
        job.run(config(data=str(other), append=True))
    numbers = write(tmp_path / "numbers.jsonl", [{**row, "label": 3} for row in make_rows(3, first=50)])
    with pytest.raises(UsageError, match="the labels there are of type bool, those of the new rows of type int64"):
        job.run(config(data=str(numbers), append=True))
    new = write(tmp_path / "new.jsonl", make_rows(3, first=50))
    with pytest.raises(SourceMismatch, match=r"options\.pooling was last, is mean"):
        job.run(config(data=str(new), append=True, pooling="mean"))
    with pytest.raises(SourceMismatch, match="places was resid_post:0"):
        job.run(config(data=str(new), append=True, places="final_norm"))
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    "changes", [{"over": "content"}, {"max_length": 100}, {"dtype": "bfloat16"}, {"values_dtype": "float16"}]
)
def test_other_options_are_refused(config, changes):
    job.run(config())
    with pytest.raises(SourceMismatch, match="was made from something else"):
        job.run(config(**changes))


def test_what_a_killed_run_left_is_removed(config, tmp_path):
    job.run(config())
    for name in (".tmpEUsw43", ".000001.safetensors.7.partial", ".000001.parquet.7.partial"):
        (tmp_path / "out" / "shards" / name).write_text("half")
    job.run(config())
    assert not [path for path in (tmp_path / "out").rglob(".*")]


def test_a_second_writer_is_refused(config, tmp_path):
    with claim(tmp_path / "out", "capture", MANIFEST), pytest.raises(FolderBusy):
        job.run(config())


def test_a_store_that_was_never_finished_is_not_read(config, tmp_path):
    with claim(tmp_path / "out", "capture", MANIFEST) as folder:
        folder.begin({}, {})
    with pytest.raises(StoreCorrupt, match="has not finished"):
        open_store(tmp_path / "out")
    with pytest.raises(SourceMismatch, match=r"holds no manifest\.json"):
        open_store(tmp_path)


def test_values_are_readable_by_others(config, tmp_path):
    job.run(config(values_dtype="bfloat16"))
    path = states(tmp_path / "out", 0)
    assert path.stat().st_mode & 0o044
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"resid_post:0", "resid_post:1", "resid_post:2", "final_norm"}
        assert file.get_tensor("final_norm").dtype == torch.bfloat16


def test_the_command_from_a_config_file(probing, model_folder, data, tmp_path):
    config = tmp_path / "job.yaml"
    lines = [f"model: {model_folder}", f"data: {data}", "places: [resid_post:1, final_norm]", "pooling: mean"]
    config.write_text("\n".join([*lines, f"out: {tmp_path / 'out'}"]))
    status, out, errors = probing("capture", "--config", config, "--pooling", "sum", "--json")
    assert status == 0, errors
    assert json.loads(out)["places"] == ["resid_post:1", "final_norm"]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["config"]["pooling"] == "sum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--places", "resid_mid:1"], "'resid_mid' is no place in a model; there are resid_pre, resid_post, attn_out"),
        (["--places", "resid_post:99"], "has 3 layers, 0 to 2"),
        (["--pooling", "median"], "median"),
        (["--over", "span"], "--over span and one of --substring and --span-column go together"),
        (["--substring", "x"], "--over span and one of --substring and --span-column go together"),
        (["--text-column", "body"], "there is no column 'body'"),
        (["--batch-tokens", "0"], "--batch-tokens must be at least 1"),
        (["--max-length", "9999"], "only has positions for 512"),
        (["--layers", "3"], "layers"),
        (["--data", "missing.jsonl"], "no such file"),
    ],
)
def test_bad_input_leaves_with_2_and_a_reason(probing, model_folder, data, tmp_path, arguments, message):
    given = ["--model", model_folder, "--data", data, "--places", "final_norm", "--out", tmp_path / "out"]
    status, _, errors = probing("capture", *override(given, arguments))
    assert status == 2
    assert message in " ".join(errors.split())


@pytest.mark.parametrize("append", [False, True])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, append):
    """While some file is written: the states of a shard or its rows, in the first shard or a later one."""
    first = write(tmp_path / "first.jsonl", make_rows(20, seed=5, first=1000))
    before = 3 if append else 0

    def run(out):
        job.run(config(out=out, append=append))

    def stopped(out, files):
        with monkeypatch.context() as patch:
            note_calls(patch, os, "fsync", files)
            with pytest.raises(KeyboardInterrupt):
                run(out)
        return count_shards(out) - before

    if append:
        job.run(config(data=str(first), out=tmp_path / "begun"))
        for name in ("calm", *map(str, FSYNCS)):
            shutil.copytree(tmp_path / "begun", tmp_path / name)
    run(tmp_path / "calm")
    whole = [stopped(tmp_path / str(files), files) for files in FSYNCS]
    assert min(whole) <= 1
    assert 1 < max(whole) < 4
    for files, known in zip(FSYNCS, whole, strict=True):
        with monkeypatch.context() as patch:
            made = note_calls(patch, stages, "write_states")
            run(tmp_path / str(files))
        assert len(made) == 4 - known
        assert content(tmp_path / str(files)) == content(tmp_path / "calm")


# Two for a file: one of it, then one of its folder.
FSYNCS = (5, 6, 8, 11, 14, 15)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(config, tmp_path):
    job.run(config(out=tmp_path / "calm"))
    values = {name: getattr(config(), name) for name in ("model", "data", "out", "places", "shard_rows")}
    kill("capture", values, tmp_path / "said", lambda: count_shards(tmp_path / "out"))
    assert 1 <= count_shards(tmp_path / "out") < 4
    job.run(config())
    assert content(tmp_path / "out") == content(tmp_path / "calm")


@pytest.mark.real_data
def test_real_pairs_are_the_same_whatever_the_batches(real_data, model_folder, tmp_path):
    """And every twenty-fifth equals the plain model, one at a time."""
    lines = gzip.decompress((real_data / "hh-rlhf-harmless-test.jsonl.gz").read_bytes()).splitlines(keepends=True)
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"".join(lines[::4]))
    places = {"places": "resid_post:1", "pooling": "mean", "over": "response"}
    options = {"model": str(model_folder), "data": str(data), **places}
    job.run(CaptureConfig(out=tmp_path / "one", batch_tokens=512, shard_rows=75, **options))
    job.run(CaptureConfig(out=tmp_path / "two", batch_tokens=16384, shard_rows=5000, **options))
    one, two = open_store(tmp_path / "one"), open_store(tmp_path / "two")
    assert one.ids == two.ids
    assert len(one.ids) > 500
    values = one.read("resid_post:1")
    assert torch.equal(values, two.read("resid_post:1"))
    model = load(str(model_folder))
    for prompt in read_data(CaptureConfig(out=tmp_path, **options))[1][::25]:
        if prompt.id in one.ids:
            states = plain_response_states(model, prompt)
            torch.testing.assert_close(values[one.ids.index(prompt.id)], states, rtol=1e-5, atol=1e-5)


def plain_response_states(model, prompt):
    tokenizer = model.tokenizer
    opening, ids = (tokenizer(text)["input_ids"] for text in (prompt.text, prompt.text + prompt.response))
    border = next((at for at, pair in enumerate(zip(opening, ids, strict=False)) if pair[0] != pair[1]), len(opening))
    ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        return model.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, border:].mean(0)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["refusal-harmful_test.json", "refusal-harmless_test.json"])
def test_real_instructions_at_the_tokens_of_the_template(real_data, model_folder, tmp_path, name):
    options = {"places": "resid_post:all", "pooling": "tokens", "over": "template", "chat": True}
    job.run(CaptureConfig(model=str(model_folder), data=str(real_data / name), out=tmp_path / "out", **options))
    store = open_store(tmp_path / "out")
    rows = store.rows
    assert len(rows) == {"refusal-harmful_test.json": 572, "refusal-harmless_test.json": 500}[name]
    assert set(rows["status"]) <= {"ok", "too_long"}
    assert set(rows.loc[rows["status"] == "ok", "counted"]) == {3}
