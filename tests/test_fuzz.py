"""Damaged records, odd rows, configurations and options: every one is met in words, none with a traceback.

200 cases in a run of the tests; ``PROBING_FUZZ_CASES=2000 pytest tests/test_fuzz.py`` tries more of them.
"""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from harness import make_pairs, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probing import cli, open_store
from probing.data.pairs import pairs_from_table
from probing.data.tables import read_table
from probing.errors import ProbingError
from probing.report.tables import render
from probing.runs import capture, score
from probing.runs.capture.stages import read_report as read_capture
from probing.runs.score.stages import read_report as read_scores
from probing.store.manifest import RunFolder
from probing.store.records import MANIFEST, RUN_FILE, SEAL, read_run, read_summary

CASES = int(os.environ.get("PROBING_FUZZ_CASES", "200"))
bounded = settings(
    max_examples=CASES // 5,
    deadline=None,
    derandomize=CASES <= 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
ODD_TEXTS = st.sampled_from(
    ["", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "\x1b[2J", "[" * 40, "1e999", "x" * 9000]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ODD_TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """Finished output folders of ``score`` and ``capture``, and the pairs that were scored."""
    folder = tmp_path_factory.mktemp("made")
    data = str(write(folder / "pairs.jsonl", make_pairs(5)))
    texts = str(write(folder / "texts.jsonl", [{"id": f"t{n}", "text": f"a boat {n}"} for n in range(4)]))
    score.run(score.ScoreConfig(model=str(model_folder), data=data, out=folder / "score"))
    capture.run(capture.CaptureConfig(model=str(model_folder), data=texts, out=folder / "capture", places="final_norm"))
    return folder


def run(*arguments):
    """A command in this process: it leaves with 0, 1 or 2, and says what is wrong in one line."""
    said = io.StringIO()
    unseen = contextlib.redirect_stdout(io.StringIO())
    with contextlib.redirect_stderr(said), unseen, pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    errors = [line for line in said.getvalue().splitlines() if not line.startswith("probing: ")]
    assert left.value.code in (0, 1, 2)
    assert left.value.code == 0 or len(errors) == 1, said.getvalue()


def try_it(function, *arguments):
    """Whatever comes of it; None where it is an error of ours."""
    with contextlib.suppress(ProbingError):
        return function(*arguments)


@st.composite
def changes(draw, record):
    """A record with one value at any depth replaced, removed or moved to another name."""
    changed = json.loads(json.dumps(record))
    changed.pop(SEAL, None)
    inner = changed
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
            break
        inner = inner[key]
    how = draw(st.sampled_from(["replace", "remove", "rename"]))
    value = inner.pop(key)
    if how == "replace":
        value = draw(VALUES)
    if how != "remove":
        if isinstance(inner, dict):
            inner[draw(st.text(max_size=5)) if how == "rename" else key] = value
        else:
            inner.insert(key, value)
    return changed


def spell(record):
    return json.dumps(record).encode()


@bounded
@given(data=st.data())
def test_records(made, data):
    score_record, manifest = read_run(made / "score"), read_run(made / "capture", MANIFEST)
    changed = spell(data.draw(changes(score_record))), spell(data.draw(changes(manifest)))
    (made / "score" / RUN_FILE).write_bytes(changed[0])
    (made / "capture" / MANIFEST).write_bytes(changed[1])
    try:
        pairs = pairs_from_table(read_table(str(made / "pairs.jsonl")))
        folder = RunFolder(made / "score", "score")
        try_it(folder.begin, score_record["identity"], {})
        try_it(lambda: render(read_scores(folder, pairs).tables))
        out = made / "kept.jsonl"
        given = ["--data", made / "pairs.jsonl", "--scores", made / "score", "--by", "ches", "--keep-lowest", "0.5"]
        run("filter", *given, "--out", out, "--overwrite")
        try_it(lambda: open_store(made / "capture").activations())
        try_it(lambda: open_store(made / "capture").verify())
        try_it(lambda: render(read_capture(RunFolder(made / "capture", "capture", MANIFEST)).tables))
    finally:
        (made / "score" / RUN_FILE).write_text(json.dumps(score_record))
        (made / "capture" / MANIFEST).write_text(json.dumps(manifest))


@bounded
@given(data=st.data())
def test_summaries(tmp_path, data):
    summary = {"data": {"rows": 3}, "tables": {"By place": [{"place": "final_norm", "value": 0.5, "low": None}] * 2}}
    (tmp_path / "summary.json").write_bytes(spell(data.draw(changes(summary))))
    tables = try_it(read_summary, tmp_path / "summary.json")
    if tables is not None:
        assert render({title: pd.DataFrame(rows) for title, rows in tables.items()}) is not None


COLUMNS = st.sampled_from(["id", "prompt", "chosen", "rejected", "messages", "text", "label"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": LEAVES, "content": LEAVES}), max_size=3)
ROWS = st.lists(st.dictionaries(COLUMNS, VALUES | MESSAGES, max_size=5) | VALUES, min_size=1, max_size=4)


@bounded
@given(rows=ROWS, cut=st.integers(0, 400) | st.none(), noise=st.binary(max_size=4))
def test_rows(made, tmp_path, rows, cut, noise):
    content = b"\n".join(map(spell, rows))
    at = len(content) if cut is None else cut
    data = tmp_path / "rows.jsonl"
    data.write_bytes(content[:at] + (noise if cut is not None else b"") + content[at:])
    given = ["--data", data, "--scores", made / "score", "--by", "ches", "--keep-lowest", "0.5"]
    run("filter", *given, "--out", tmp_path / "kept.jsonl", "--overwrite")


NAMES = {
    "score": ["model", "data", "out", "columns", "batch_tokens", "max_length", "rate_parameters", "eos", "dtype"],
    "clusters": ["model", "data", "out", "folds", "permutations", "resamples", "seed", "weight", "places", "pooling"],
    "ccs": ["model", "data", "out", "epochs", "learning_rate", "random", "answers", "template", "split_by"],
    "filter": ["data", "scores", "out", "by", "below", "keep_lowest", "bad", "format", "overwrite"],
    "rollouts": ["model", "data", "out", "correct_above", "advantage", "rewards_column", "shard_groups", "max_length"],
    "displacement": ["reference", "policy", "data", "out", "beta", "top", "predictors", "shard_pairs"],
}


def base(command, folder):
    """What a command needs, with data that are not there: whatever passes as options ends there."""
    given = {"data": str(folder / "missing.jsonl"), "out": str(folder / "out")}
    needed = {"filter": {"scores": "x", "by": "ches"}, "displacement": {"reference": "bundled", "policy": "bundled"}}
    return given | needed.get(command, {"model": "bundled"})


NUMBERS = st.sampled_from(["0", "-1", "1000000000000", "1e12", "inf", "nan", "-inf", "1" * 5000, "0x10", "1_0", "٣"])
WORDS = (
    LEAVES.map(str) | NUMBERS | st.sampled_from(["last:0", "last:-1", "last:1", "[1, 2]", "{a: 1}", "null", "&a [*a]"])
)


@bounded
@given(command=st.sampled_from(sorted(NAMES)), data=st.data())
def test_options(tmp_path, command, data):
    chosen = data.draw(st.dictionaries(st.sampled_from(NAMES[command]), WORDS, max_size=3))
    # A process cannot be given an argument with NUL, and no model or data but those that are not there are looked for.
    values = base(command, tmp_path) | {name: value.replace("\0", "") for name, value in chosen.items()}
    values["data"] = str(tmp_path / "missing.jsonl")
    values = {
        name: str(tmp_path / "out") if name == "out" and ".." in value else value for name, value in values.items()
    }
    run(command, *(f"--{name.replace('_', '-')}={value}" for name, value in values.items()))


@bounded
@given(command=st.sampled_from(sorted(NAMES)), data=st.data())
def test_configurations(tmp_path, command, data):
    names = st.sampled_from(NAMES[command]) | st.text(max_size=5)
    values = base(command, tmp_path) | data.draw(st.dictionaries(names, VALUES, max_size=3))
    values["data"] = str(tmp_path / "missing.jsonl")
    text = yaml.safe_dump(values)
    at = data.draw(st.integers(0, len(text)) | st.none())
    if at is not None:
        text = (
            text[:at] + data.draw(st.text(max_size=3) | st.sampled_from(["&a ", "*a", "- ", "\t", "!!x "])) + text[at:]
        )
    (tmp_path / "c.yaml").write_bytes(text.encode(errors="surrogatepass"))
    run(command, "--config", tmp_path / "c.yaml", f"--data={tmp_path / 'missing.jsonl'}", f"--out={tmp_path / 'out'}")
    shutil.rmtree(Path(tmp_path / "out"), ignore_errors=True)
