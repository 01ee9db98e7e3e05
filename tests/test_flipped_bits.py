"""A bit that flips in any file of any command: what is read again is refused, or is what it was; never other rows."""

import random
import shutil

import pyarrow.parquet as pq
import pytest
import refusal_runs
import tiny
from harness import make_pairs, make_rollouts, phrase, write

from probing import cli, open_store
from probing.data.bundled import bundled_data
from probing.errors import ProbingError
from probing.report.screen import to_json
from probing.runs import filter as filtering
from probing.runs.common.record import check_files, read_finished_report
from probing.runs.refusal.common.prompts import read_kinds
from probing.runs.refusal.evaluate import EvaluateConfig
from probing.runs.refusal.evaluate.states import open_extracted
from probing.runs.refusal.select import SelectConfig
from probing.runs.refusal.select.data import read_held_out
from probing.runs.report.data import read_runs
from probing.store.directions import open_direction, open_directions
from probing.store.manifest import RunFolder, read_run
from probing.store.probes import open_probes
from probing.store.records import MANIFEST

FLIPS = 60
QUICK = ["--places", "resid_post:1", "--resamples", "10", "--folds", "3"]
FAST = "--epochs 5 --restarts 1 --pairings 1 --random 2 --refits 1 --permutations 5".split()
COMMANDS = {
    "score": ["--pull"],
    "rollouts": [],
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
    write(folder / "rollouts.jsonl", make_rollouts(8))
    texts = [{"id": f"r{n}", "text": f"{phrase(words, 3, 9)} {n}", "label": "ab"[n % 2]} for n in range(24)]
    write(folder / "texts.jsonl", texts)
    lines = bundled_data("statements").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "statements.jsonl").write_text("".join(lines[::8]), encoding="utf-8")
    return folder


def make(command, data, model, out):
    models = ["--model", str(model)]
    if command == "displacement":
        models = ["--reference", str(model), "--policy", str(data / "policy")]
    name = {"ccs": "statements", "score": "pairs", "displacement": "pairs", "rollouts": "rollouts"}.get(
        command, "texts"
    )
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
    if command == "rollouts":
        (run,) = read_runs([folder])
        return [frame.to_json() for frame in run.files.values()]
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
    flip_bits(folder, [lambda: read_back(command, folder, data, tmp_path / "kept.jsonl")], command)


def read_export(folder):
    """The manifest of an export, and the files as it knows them."""
    manifest = RunFolder(folder, "refusal export", MANIFEST)
    check_files(manifest, manifest.facts()["sha256"])
    return to_json(read_run(folder, MANIFEST))


def read_tables(folder, command):
    report = read_finished_report(RunFolder(folder, command), "summary.json")
    return to_json({title: table.to_dict("records") for title, table in report.tables.items()})


def read_direction(folder):
    one = open_direction(folder)
    return one.vector.numpy().tobytes(), str((one.place, one.position, one.source, one.facts, one.harmless_mean))


def read_for_select(folder, prompts):
    config = SelectConfig(model="bundled", data=str(prompts), directions=folder, out=folder / "none")
    held_out, many = read_held_out(config, read_kinds(config)), open_directions(folder)
    return str((held_out.harmful, held_out.harmless, many.places, many.facts)), many.vectors.numpy().tobytes()


def read_for_evaluate(folder, direction):
    config = EvaluateConfig(model="bundled", extracted=folder, direction=folder, out=folder / "none")
    extracted = open_extracted(config, direction, direction.width, 4)
    return extracted.states(direction.place).numpy().tobytes(), extracted.prompts.to_json()


@pytest.mark.parametrize("command", refusal_runs.COMMANDS)
def test_a_flipped_bit_in_what_a_command_of_refusals_wrote(refusal_run, tmp_path, command):
    """Each later reader of it by itself: select and evaluate read more than the tables of an extraction."""
    folder, prompts = shutil.copytree(refusal_run / command, tmp_path / "out"), refusal_run / "prompts.jsonl"
    readers = [lambda: read_tables(folder, f"refusal {command}")]
    if command == "export":
        readers = [lambda: read_export(folder)]
    if command in ("select", "transfer"):
        readers.append(lambda: read_direction(folder))
    if command == "extract":
        direction = open_direction(refusal_run / "select")
        readers += [lambda: read_for_select(folder, prompts), lambda: read_for_evaluate(folder, direction)]
    flip_bits(folder, readers, command)


def flip_bits(folder, readers, seed):
    """Flip single bits in every file of a folder: what a reader reads is what it was, or is refused, and often."""
    expected = [read() for read in readers]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    assert len(files) > 1
    generator, refused = random.Random(seed), [0] * len(readers)
    for number in range(FLIPS):
        path = files[number % len(files)]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        for at, read in enumerate(readers):
            try:
                assert read() == expected[at], path
            except ProbingError:
                refused[at] += 1
        path.write_bytes(whole)
    # Any reader reads a quarter of the files at least, but for the one that wants a single file.
    assert max(refused) > FLIPS / 4
    assert min(refused) > FLIPS / 20


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
