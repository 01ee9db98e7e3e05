"""Text of any origin that reaches a screen is shown and never obeyed: a hostile string at every place where it may."""

import io
import json
import shutil
import sys

import pytest
import refusal_runs
import tiny
from harness import make_rollouts, phrase, write

from probing import cli
from probing.data.bundled import bundled_data, bundled_displaced, bundled_model
from probing.report.screen import Screen, to_json, to_page
from probing.shown import escape_controls, to_message

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\u200b\u2028\rLINE\nLINE\x85"
NAME = HOSTILE.replace("/", "")
FORBIDDEN = set("\x1b\x07\x9b\u202e\u200b\u2028\x85")
QUICK = ["--resamples", "20", "--folds", "3"]
FAST = "--epochs 5 --restarts 1 --pairings 1 --random 2 --refits 1 --permutations 5".split()


def check(*outputs):
    """Nothing in the output is obeyed by a terminal, and no line is one that the data made up."""
    for output in outputs:
        assert not FORBIDDEN & set(output), output
        assert not any(line.startswith("LINE") for line in output.replace("\r", "\n").splitlines()), output


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, model_folder):
    """Models, data and names of which everything that a user chooses is hostile."""
    import random

    folder = tmp_path_factory.mktemp("hostile") / NAME
    folder.mkdir()
    shutil.copytree(model_folder, folder / "model")
    tiny.save_model(folder / "policy", seed=1)
    words = random.Random(0)
    pairs = [
        {"id": f"{n}{HOSTILE}", "prompt": HOSTILE, "chosen": f" {n} {HOSTILE}", "rejected": f" {phrase(words, 1, 9)}"}
        | {"kind": f"{n % 2}{HOSTILE}", HOSTILE: n}
        for n in range(6)
    ]
    texts = [
        {"id": f"{n}{HOSTILE}", "text": f"{phrase(words, 3, 9)} {n}{HOSTILE}", "label": f"{n % 2}{HOSTILE}"}
        | {"category": f"{n % 3}{HOSTILE}"}
        for n in range(24)
    ]
    rows = [json.loads(line) for line in bundled_data("statements").read_text(encoding="utf-8").splitlines()]
    kinds = {}
    for row in rows:
        kinds.setdefault((row["category"], row["formulation"], row["label"]), row)
    statements = [
        {**row, "id": f"{row['id']}{HOSTILE}", "category": f"{row['category']}{HOSTILE}"}
        for row in sorted(kinds.values(), key=lambda row: row["category"])[:24]
    ]
    groups = [
        {
            "id": f"{row['id']}{HOSTILE}",
            "prompt": f"{row['prompt']}{HOSTILE}",
            "responses": [f"{each}{HOSTILE}" for each in row["responses"]],
            "rewards": row["rewards"],
        }
        for row in make_rollouts(8)
    ]
    for name, content in {"pairs": pairs, "texts": texts, "statements": statements, "rollouts": groups}.items():
        write(folder / f"{name}.jsonl", content)
    return folder


COMMANDS = {
    "score": ("pairs", ["--pull"]),
    "displacement": ("pairs", ["--top", "2", "--group-column", "kind"]),
    "rollouts": ("rollouts", []),
    "capture": ("texts", ["--places", "final_norm"]),
    "probe": ("texts", [*QUICK, "--refits", "2", "--places", "resid_post:1"]),
    "clusters": ("texts", [*QUICK, "--permutations", "5", "--places", "resid_post:1", "--no-tsne"]),
    "ccs": ("statements", [*QUICK, "--places", "resid_post:1", *FAST]),
}


def options(command, folder, out):
    data, further = COMMANDS[command]
    models = ["--model", folder / "model"]
    if command == "displacement":
        models = ["--reference", folder / "model", "--policy", folder / "policy"]
    return [command, *models, "--data", folder / f"{data}.jsonl", "--out", out, *further]


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_messages_and_pages_of_every_command(probing, hostile, tmp_path, command):
    out = tmp_path / NAME
    status, shown, errors = probing(*options(command, hostile, out))
    assert status == 0, errors
    check(shown, errors)
    status, shown, errors = probing(*options(command, hostile, out), "--json")
    check(shown, errors)
    assert status == 0
    assert json.loads(shown)["tables"]
    for page in out.glob("*.html"):
        body = page.read_text(encoding="utf-8").rpartition("figure0")[2]
        assert not FORBIDDEN & set(body)
    # The folder's run was made from something else: the names of both stand in the message.
    more = ["--max-length", "77"]
    status, shown, errors = probing(*options(command, hostile, out), *more)
    assert status == 2
    check(shown, errors)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """Models that refuse, and prompts, all of whose names and texts are hostile; their runs are made beside them."""
    folder = tmp_path_factory.mktemp("refusing") / NAME
    shutil.copytree(bundled_model(), folder / f"model{NAME}")
    shutil.copytree(bundled_displaced(), folder / f"policy{NAME}")

    def spoil(row):
        hostile = {name: f"{row[name]}{HOSTILE}" for name in ("id", "text", "category", "label")}
        return row | hostile

    refusal_runs.write_prompts(folder / "prompts.jsonl", spoil)
    return folder


@pytest.mark.parametrize("command", refusal_runs.COMMANDS)
def test_what_the_commands_of_refusals_say(probing, refusing, command):
    models = [refusing / f"{name}{NAME}" for name in ("model", "policy")]
    given = refusal_runs.options_of(command, refusing / "prompts.jsonl", refusing, refusing / command, *models)
    if command != "export":
        given += [f"--harmful-label=harmful{HOSTILE}", f"--harmless-label=harmless{HOSTILE}"]
    if command in ("extract", "select"):
        given.append("--no-filter-by-sign")
    if command == "trace":
        # With these strings in its prompts the model refuses none of them.
        given.append("--no-classifier")
    status, shown, errors = probing(*given)
    assert status == 0, errors
    check(shown, errors)
    again = given if command != "export" else [*given[:-1], refusing / "again"]
    status, shown, errors = probing(*again, "--json")
    assert status == 0, errors
    check(shown, errors)
    for page in (refusing / command).glob("*.html"):
        assert not FORBIDDEN & set(page.read_text(encoding="utf-8").rpartition("figure0")[2])
    for card in (refusing / command).glob("README.md"):
        check(card.read_text(encoding="utf-8"))
    more = ["--max-length", "77"] if command != "export" else []
    status, shown, errors = probing(*given, *more)
    assert status == 2, errors
    check(shown, errors)


def test_what_filter_says(probing, hostile, tmp_path):
    scores = tmp_path / NAME
    assert probing(*options("score", hostile, scores))[0] == 0
    given = ["filter", "--data", hostile / "pairs.jsonl", "--out", tmp_path / f"{NAME}.jsonl", "--keep-lowest", "0.5"]
    for by, folder in ((HOSTILE, scores), ("ches", tmp_path / f"none{NAME}"), ("ches", scores), ("ches", scores)):
        status, shown, errors = probing(*given, "--scores", folder, "--by", by)
        check(shown, errors)
    assert status == 2
    shutil.copy(scores / "scores.parquet", tmp_path / f"{NAME}.parquet")
    bare = ["--scores", tmp_path / f"{NAME}.parquet", "--by", "ches", "--overwrite"]
    status, shown, errors = probing(*given, *bare)
    assert status == 0
    check(shown, errors)
    (hostile / "other.jsonl").write_text(json.dumps({"id": HOSTILE, "prompt": "Q", "chosen": " a", "rejected": " b"}))
    check(*probing(*given, *bare, "--data", hostile / "other.jsonl")[1:])


MISTAKES = {
    "a command": [HOSTILE],
    "an option": ["score", f"--{HOSTILE}"],
    "a value": ["score", "--model=m", "--data=d", "--out=o", f"--batch-tokens={HOSTILE}"],
    "a word": ["score", "--model=m", "--data=d", "--out=o", f"--dtype={HOSTILE}"],
    "a file": ["score", "--model=m", f"--data={HOSTILE}.jsonl", "--out=o"],
    "a place": ["capture", "--model=bundled", "--data=bundled", "--out=o", f"--places={HOSTILE}"],
    "a configuration": ["score", f"--config={HOSTILE}"],
    "a column": ["score", "--model=bundled", "--data=bundled", "--out={out}", f"--columns={HOSTILE}"],
    "a column of ids": ["score", "--model=bundled", "--data=bundled", "--out={out}", f"--id-column={HOSTILE}"],
    "a model": ["score", f"--model={HOSTILE}", "--data=bundled", "--out={out}"],
    "a device": ["score", "--model=bundled", "--data=bundled", "--out={out}", f"--device={HOSTILE}"],
    "a column to split by": ["probe", "--model=bundled", "--data=bundled", "--out={out}", f"--split-by={HOSTILE}"],
    "an output": ["score", "--model=bundled", "--data=bundled", f"--out=/dev/null/{NAME}"],
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(probing, tmp_path, case):
    arguments = [part.replace("{out}", str(tmp_path / "out")) for part in MISTAKES[case]]
    status, shown, errors = probing(*arguments)
    assert status == 2
    check(shown, errors)
    said = [line for line in errors.splitlines() if line.startswith("probing")]
    assert len(said) == 1, errors


def test_what_a_template_says(probing, hostile, tmp_path):
    model = shutil.copytree(hostile / "model", tmp_path / "model")
    escaped = HOSTILE.encode("unicode_escape").decode()
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + escaped + "') }}")
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    row = {"id": "a", "chosen": messages, "rejected": [messages[0], {"role": "assistant", "content": "B"}]}
    data = write(tmp_path / "messages.jsonl", [row])
    status, shown, errors = probing("score", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert status in (1, 2)
    assert "owned" in errors
    check(shown, errors)


@pytest.mark.parametrize("key", ["model_type", "torch_dtype", "architectures"])
def test_what_a_library_says_of_a_model(probing, hostile, tmp_path, key):
    model = shutil.copytree(hostile / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: [HOSTILE] if key == "architectures" else HOSTILE}))
    data = hostile / "pairs.jsonl"
    _, shown, errors = probing("score", "--model", model, "--data", data, "--out", tmp_path / "out")
    check(shown, errors)


def test_controls_are_spelled_out():
    assert escape_controls("plain ñ 日本 🙂 \u3000\xa0") == "plain ñ 日本 🙂 \u3000\xa0"
    assert escape_controls("\x1b[1m\u202e\x9b\u200b\ud800\n") == r"\x1b[1m\u202e\x9b\u200b\ud800\n"
    assert to_message("one\ntwo\r\x1b") == r"one two \x1b"
    assert to_message("x" * 9000, 10) == "x" * 9 + "…"
    assert to_page({"a": ["<b>\x1b", 3], "n": None}) == {"a": ["&lt;b&gt;\\x1b", 3], "n": None}


def test_json_stays_json():
    value = {"\x1b": [HOSTILE, "\ud800", "\U000e0041", "ñ"], "n": [float("nan"), float("inf"), 1.5]}
    text = to_json(value)
    check(text)
    assert json.loads(text) == {"\x1b": value["\x1b"], "n": [None, None, 1.5]}


def test_the_stream_lets_a_bar_return_and_nothing_else():
    stream = io.StringIO(newline="")
    screen = Screen(stream)
    screen.write("\rbar 3 %\x1b[31m")
    screen.writelines(["a\rb\x1b]0;t\x07\n"])
    assert stream.getvalue() == "\rbar 3 %a\\rb\\x1b]0;t\\x07\n"


def test_a_traceback_passes_the_gate_too(monkeypatch):
    def fail(arguments):
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr(cli, "_run_command", fail)
    plain = sys.stdout, sys.stderr
    try:
        with pytest.raises(RuntimeError):
            cli.main([])
        assert isinstance(sys.stderr, Screen)
    finally:
        sys.stdout, sys.stderr = plain
