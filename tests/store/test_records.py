"""What stands in a folder is not believed: every record is checked before anything in it is used."""

import contextlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import make_pairs, write

from probing import open_store
from probing.errors import SourceMismatch, StoreCorrupt
from probing.runs import capture, score
from probing.store.manifest import claim
from probing.store.plain_json import parse_json
from probing.store.records import MANIFEST, RUN_FILE, SEAL, read_run
from probing.store.shards import read_shard, write_shard

HASH = "0" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """Finished output folders of ``score`` and ``capture``."""
    folder = tmp_path_factory.mktemp("made")
    data = str(write(folder / "pairs.jsonl", make_pairs(5)))
    texts = str(write(folder / "texts.jsonl", [{"id": f"t{n}", "text": f"a boat {n}"} for n in range(5)]))
    score.run(score.ScoreConfig(model=str(model_folder), data=data, out=folder / "score"))
    capture.run(
        capture.CaptureConfig(
            model=str(model_folder), data=texts, out=folder / "capture", places="resid_post:0..1", shard_rows=2
        )
    )
    return folder


@pytest.fixture
def store(made, tmp_path):
    return shutil.copytree(made / "capture", tmp_path / "capture")


def edit(path, change, sealed=False):
    """Change a record as an older version, or a hand, might have written it."""
    record = json.loads(path.read_text())
    if not sealed:
        del record[SEAL]
    path.write_text(json.dumps(change(record) or record))


def put(*keys, value):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


WRONG = {
    "a shard above the folder": (put("shards", 0, "file", value="../../other.safetensors"), r"shards\[0\]\.file"),
    "an absolute shard": (put("shards", 0, "file", value="/etc/passwd"), r"shards\[0\]\.file: expected the name"),
    "another shard": (put("shards", 0, "file", value="000001.safetensors"), "expected 000000.safetensors"),
    "a shard of other places": (put("shards", 0, "tensors", value={"final_norm": HASH}), "not those of the places"),
    "no shards": (put("shards", value=None), "shards: expected a list, found None"),
    "another pooling": (put("request", "pooling", value="median"), "request.pooling: expected one of last"),
    "a place twice": (put("places", value=["resid_post:0", "resid_post:0"]), "places: one stands there twice"),
    "a source with more": (put("source", "path", value="x"), "source: path unknown"),
    "a label type": (put("label_type", value="object"), "label_type"),
    "a budget": (put("batch_tokens", value=3), "batch_tokens: expected an object"),
    "rows of other shards": (put("data", 0, "shards", value=10**15), "shards"),
    "a later version": (put("schema_version", value=2), "schema 2, this one reads 1"),
    "a version of text": (put("schema_version", value="1"), "schema_version: expected a count, found '1'"),
    "true for 1": (put("schema_version", value=True), "schema_version: expected a count"),
    "another status": (put("status", value="perhaps"), "status: expected one of running, done"),
}


BEGIN = "(damaged, or written by another version|written by a newer version of probing)"


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_that_was_edited_is_named(store, case):
    change, message = WRONG[case]
    edit(store / MANIFEST, change)
    with pytest.raises(StoreCorrupt, match=rf"manifest\.json: {BEGIN} \(.*{message}"):
        open_store(store)


def test_a_record_says_that_it_was_changed(store):
    edit(store / MANIFEST, put("layers", value=2), sealed=True)
    with pytest.raises(StoreCorrupt, match="it was changed since it was written"):
        open_store(store)


def test_a_record_of_a_version_without_the_hash_is_read(store):
    values = open_store(store).read("resid_post:1")
    edit(store / MANIFEST, lambda record: None)
    assert open_store(store).read("resid_post:1").equal(values)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, '{"a": 1, "a": 2}', "1" * 5000, "\x00"]
)
def test_json_that_is_not_ours(store, text):
    (store / MANIFEST).write_text(text)
    with pytest.raises(StoreCorrupt, match=r"manifest\.json: damaged"):
        open_store(store)
    with pytest.raises(ValueError, match=r"nested|twice|digits|Expecting"):
        parse_json(text, 32)


@pytest.mark.parametrize("name", ["manifest.json", "rows.parquet", "shards", "shards/000001.safetensors"])
def test_links_are_not_followed(store, tmp_path, name):
    """A link in the folder may lead anywhere: it is not read, and what it leads to is not written."""
    elsewhere = tmp_path / "elsewhere"
    (store / name).rename(elsewhere)
    (store / name).symlink_to(elsewhere)
    with pytest.raises(StoreCorrupt, match=f"{name.replace('shards/', '')}: is a link, which is not followed"):
        open_store(store).activations()


def test_what_a_link_leads_to_is_not_overwritten(made, store, tmp_path, model_folder):
    for name in ("rows.parquet", "shards/000001.safetensors", "shards/000001.parquet"):
        (store / name).unlink()
        (tmp_path / "mine").write_text("mine")
        (store / name).symlink_to(tmp_path / "mine")
        options = {"places": "resid_post:0..1", "shard_rows": 2, "repair": True}
        capture.run(
            capture.CaptureConfig(model=str(model_folder), data=str(made / "texts.jsonl"), out=store, **options)
        )
        assert (tmp_path / "mine").read_text() == "mine"
        assert not (store / name).is_symlink()
        assert open_store(store).verify() == []


def test_a_folder_of_parts_that_is_a_link_is_not_written_to(tmp_path):
    with claim(tmp_path / "out", "score") as folder:
        folder.begin({}, {})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "shards").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreCorrupt, match="shards: is a link"), claim(tmp_path / "out", "score"):
        pass


OF_SCORES = {
    "no hash": lambda record: record.pop("scores_sha256") and None,
    "pairs elsewhere": put("ref_logps", value={"file": "../x", "sha256": HASH, "rows": 1, "left_out": 0}),
    "counts": put("rows_by_status", value={"ok": "many"}),
    "problems": put("problems", value=[{"id": 3}]),
    "nothing ok and no problem": put("rows_by_status", value={"truncated": 5}),
    "options": put("config", value=[]),
    "a split": put("config", "split", value=3),
    "identity": put("identity", value="none"),
    "command": put("command", value=None),
    "a list": lambda record: [record],
}


@pytest.mark.parametrize("case", OF_SCORES)
def test_a_record_of_scores_that_was_edited_is_named(made, tmp_path, model_folder, case):
    out = shutil.copytree(made / "score", tmp_path / "score")
    edit(out / RUN_FILE, OF_SCORES[case])
    with pytest.raises(StoreCorrupt, match=r"run\.json: damaged"):
        score.run(score.ScoreConfig(model=str(model_folder), data=str(made / "pairs.jsonl"), out=out))


def test_files_of_a_run_lie_in_its_folder(tmp_path):
    record = {"schema_version": 1, "command": "displacement", "status": "done", "broken_steps": [], "problems": []}
    record |= {"rows_by_status": {"ok": 1}, "sha256": {"displacement.parquet": HASH}}
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    assert read_run(tmp_path) == record
    for name in ("../a.parquet", "/etc/passwd", "run.json", "..", "a\0b", ""):
        (tmp_path / RUN_FILE).write_text(json.dumps(record | {"sha256": {"displacement.parquet": HASH, name: HASH}}))
        with pytest.raises(StoreCorrupt, match=r"run\.json: damaged.*sha256"):
            read_run(tmp_path)


def test_every_change_of_a_byte_of_a_record_is_met_in_words(store):
    """With the hash and without: an error of ours, or a record that still reads."""
    whole = (store / MANIFEST).read_bytes()
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (store / MANIFEST).write_bytes(changed)
        with contextlib.suppress(StoreCorrupt, SourceMismatch):
            open_store(store)


def test_the_hash_of_a_part_is_of_its_values(tmp_path):
    """However they are chunked, with values that are missing or not finite, and without rows."""
    schema = pa.schema(
        [("id", pa.string()), ("value", pa.float64()), ("count", pa.int64()), ("top", pa.list_(pa.int64()))]
    )
    columns = [["a", None, "c"], [1.5, None, float("nan")], [1, None, 3], [[1], None, []]]
    whole = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
    for rows in (whole, pa.concat_tables([whole[:1], whole[1:]]), whole[:0], schema.empty_table()):
        write_shard(tmp_path / "part.parquet", rows, {"seconds": 1.5})
        read = read_shard(tmp_path / "part.parquet", schema)
        assert read is not None
        assert (str(read[0].to_pydict()), read[1]) == (str(rows.to_pydict()), {"seconds": 1.5})
    write_shard(tmp_path / "chunked.parquet", pa.concat_tables([whole[:1], whole[1:]]), {})
    write_shard(tmp_path / "whole.parquet", whole, {})
    hashes = [pq.read_schema(tmp_path / name).metadata for name in ("chunked.parquet", "whole.parquet")]
    assert hashes[0] == hashes[1]
