"""A bit that flips in any file of any command: what is read again is refused, or is what it was; never other rows."""

import random
import shutil

import pyarrow.parquet as pq
import pytest
import tiny
from harness import make_pairs, phrase, write

from probing import cli, open_store
from probing.data.bundled import bundled_data
from probing.errors import ProbingError
from probing.report.screen import to_json
from probing.runs import filter as filtering
from probing.runs.common.record import check_files, read_finished_report
from probing.store.manifest import RunFolder
from probing.store.probes import open_probes
from probing.store.records import MANIFEST

FLIPS = 60
QUICK = ["--places", "resid_post:1", "--resamples", "10", "--folds", "3"]
FAST = "--epochs 5 --restarts 1 --pairings 1 --random 2 --refits 1 --permutations 5".split()
COMMANDS = {
    "score": [],
    "displacement": ["--top", "2"],
    "capture": ["--places", "resid_post:0..1", "--shard-rows", "8"],
    "probe": [*QUICK, "--refits", "2"],
    "clusters": [*QUICK, "--permutations", "5", "--no-tsne"],
    "ccs": [*QUICK, *FAST],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, model_folder):
    folder, words = tmp_path_factory.mktemp("data"), random.Random(0)
    tiny.save_model(folder / "policy", seed=1)
    write(folder / "pairs.jsonl", make_pairs(12))
    texts = [{"id": f"r{n}", "text": f"{phrase(words, 3, 9)} {n}", "label": "ab"[n % 2]} for n in range(24)]
    write(folder / "texts.jsonl", texts)
    lines = bundled_data("statements").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "statements.jsonl").write_text("".join(lines[::8]), encoding="utf-8")
    return folder


def make(command, data, model, out):
    models = ["--model", str(model)]
    if command == "displacement":
        models = ["--reference", str(model), "--policy", str(data / "policy")]
    name = {"ccs": "statements", "score": "pairs", "displacement": "pairs"}.get(command, "texts")
    given = [*models, "--data", str(data / f"{name}.jsonl"), "--out", str(out), *COMMANDS[command]]
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *given])
    assert ended.value.code == 0


def read_back(command, folder, data, kept):
    """Everything that a later command reads of a folder, as text and bytes."""
    if command in ("score", "displacement"):
        file = folder / ("scores.parquet" if command == "score" else "displacement.parquet")
        by = "ches" if command == "score" else "chosen_change"
        options = {"data": str(data / "pairs.jsonl"), "scores": file, "by": by, "keep_lowest": 0.5, "overwrite": True}
        filtering.run(filtering.FilterConfig(out=kept, **options))
        if command == "displacement":
            check_files(RunFolder(folder, command), RunFolder(folder, command).facts()["sha256"])
        return kept.read_bytes()
    if command == "capture":
        return read_store(folder)
    report = read_finished_report(RunFolder(folder, command), "summary.json")
    read = [to_json({title: table.to_dict("records") for title, table in report.tables.items()})]
    if command != "clusters":
        probes = open_probes(folder / "probes.safetensors")
        read += [str((probes.names, probes.places, probes.source)), probes.weight.numpy().tobytes()]
        read += [probes.bias.numpy().tobytes(), probes.centers.numpy().tobytes()]
    return [*read, *read_store(folder / "states")]


def read_store(folder):
    store = open_store(folder)
    acts = store.activations()
    return [acts.values.numpy().tobytes(), str((acts.ids, acts.places, acts.source)), store.rows.to_json()]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flipped_bit_is_refused_or_harmless(data, model_folder, tmp_path, command):
    folder = tmp_path / "out"
    make(command, data, model_folder, folder)
    expected = read_back(command, folder, data, tmp_path / "kept.jsonl")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    assert len(files) > 1
    generator, refused = random.Random(command), 0
    for number in range(FLIPS):
        path = files[number % len(files)]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            assert read_back(command, folder, data, tmp_path / "kept.jsonl") == expected, path
        except ProbingError:
            refused += 1
        path.write_bytes(whole)
    assert refused > FLIPS / 4


def test_a_bit_that_flips_in_a_part_is_found(tmp_path, data, model_folder):
    """A finished store joins its rows again from their parts where the joined ones are gone: only from whole ones."""
    folder = tmp_path / "out"
    make("capture", data, model_folder, folder)
    joined = (folder / "rows.parquet").read_bytes()
    part, generator = folder / "shards" / "000001.parquet", random.Random(0)
    whole = part.read_bytes()
    assert pq.read_schema(part).metadata[b"probing_sha256"]
    options = ["capture", "--model", str(model_folder), "--data", str(data / "texts.jsonl"), "--out", str(folder)]
    for _ in range(10):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        part.write_bytes(changed)
        (folder / "rows.parquet").unlink(missing_ok=True)
        with pytest.raises(SystemExit) as ended:
            cli.main([*options, *COMMANDS["capture"]])
        assert ended.value.code == 1 or (folder / "rows.parquet").read_bytes() == joined
    part.write_bytes(whole)
    shutil.rmtree(folder)


def test_the_manifest_is_what_a_store_is_opened_by(tmp_path, data, model_folder):
    make("capture", data, model_folder, tmp_path / "out")
    text = (tmp_path / "out" / MANIFEST).read_text()
    (tmp_path / "out" / MANIFEST).write_text(text.replace('"layers": 3', '"layers": 2'))
    with pytest.raises(ProbingError, match="it was changed since it was written"):
        open_store(tmp_path / "out")
