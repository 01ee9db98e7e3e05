"""probing show: the right pairs of a finished run, with their texts beside their numbers."""

import json

import pandas as pd
import pytest
from harness import make_pairs, read_lines, write

from probing.runs import score
from probing.runs.score.config import ScoreConfig


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model_folder):
    """A dataset and the folder of its scores."""
    folder = tmp_path_factory.mktemp("show")
    talk = {
        "id": "talk",
        "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}] * 1
        + [{"role": "user", "content": "Who?"}],
        "chosen": [{"role": "assistant", "content": "me and nobody else"}],
        "rejected": [{"role": "assistant", "content": "you"}],
    }
    data = write(folder / "pairs.jsonl", [*make_pairs(12), talk, {**make_pairs(1)[0], "id": "\x1b[31mred"}])
    score.run(ScoreConfig(model=str(model_folder), data=str(data), out=folder / "out"))
    return data, folder / "out"


def shown_ids(text):
    """Ids of the pairs that were printed, in order."""
    return [line.split(", ")[0] for line in text.splitlines() if ", row " in line]


def test_the_highest_are_shown_unless_something_else_is_asked_for(probing, scored):
    frame = pd.read_parquet(scored[1] / "scores.parquet").sort_values(
        ["ches_normalized", "id"], ascending=[False, True]
    )
    status, out, _ = probing("show", scored[1])
    assert status == 0
    assert shown_ids(out) == [id.replace("\x1b", "\\x1b") for id in frame["id"].head(5)]
    _, out, _ = probing("show", scored[1], "--by", "ches", "--lowest", "3", "--highest", "2")
    by_ches = frame.sort_values(["ches", "id"], ascending=[False, True])["id"].tolist()
    assert shown_ids(out) == [id.replace("\x1b", "\\x1b") for id in [*by_ches[:2], *by_ches[:-4:-1]]]


def test_texts_stand_beside_the_numbers(probing, scored):
    _, out, _ = probing("show", scored[1], "--id", "talk")
    frame = pd.read_parquet(scored[1] / "scores.parquet").set_index("id")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "talk, row 12, ok"
    assert lines[1].startswith(f"ches_normalized {frame.loc['talk', 'ches_normalized']:.4g}, ")
    assert lines[lines.index("prompt") : lines.index("prompt") + 4] == [
        "prompt",
        "user: Hi",
        "assistant: Ho",
        "user: Who?",
    ]
    assert lines[lines.index("chosen") + 1] == "assistant: me and nobody else"
    assert lines[lines.index("rejected") + 1] == "assistant: you"


def test_lines_fit_a_narrow_terminal(probing, scored, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = probing("show", scored[1])
    assert max(map(len, out.splitlines())) <= 50
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = probing("show", scored[1])
    assert 50 < max(map(len, out.splitlines())) <= 100


def test_nothing_of_the_data_is_obeyed_by_the_terminal(probing, scored):
    _, out, _ = probing("show", scored[1], "--id", "\x1b[31mred")
    assert out.startswith("\\x1b[31mred, row 13, ok\n")
    assert "\x1b" not in out


def test_rows_are_exported_with_whole_texts(probing, scored, tmp_path):
    target = tmp_path / "worst.jsonl"
    status, _, errors = probing("show", scored[1], "--highest", "2", "--export", target)
    assert (status, f"wrote {target}" in errors) == (0, True)
    rows = read_lines(target)
    texts = {row["id"]: row for row in read_lines(scored[0])}
    assert [row["chosen"] for row in rows] == [texts[row["id"]]["chosen"] for row in rows]
    assert rows[0]["ches_normalized"] > rows[1]["ches_normalized"]
    status, _, errors = probing("show", scored[1], "--export", target)
    assert (status, "exists already" in errors) == (2, True)
    assert probing("show", scored[1], "--export", target, "--overwrite")[0] == 0
    assert len(read_lines(target)) == 5


def test_json_has_the_pairs(probing, scored):
    _, out, _ = probing("show", scored[1], "--id", "talk", "--json")
    (pair,) = json.loads(out)["pairs"]
    assert (pair["id"], pair["row"], pair["chosen"][0]["content"]) == ("talk", 12, "me and nobody else")


def test_a_part_of_the_data_is_found_again(probing, scored, model_folder, tmp_path):
    out = tmp_path / "out"
    given = ["--model", model_folder, "--data", scored[0], "--split", "[4:8]", "--out", out]
    assert probing("score", *given)[0] == 0
    _, shown, _ = probing("show", out, "--highest", "9")
    rows = pd.read_parquet(out / "scores.parquet")["row"].tolist()
    assert rows == [4, 5, 6, 7]
    assert len(shown_ids(shown)) == 4
    assert all(f", row {row}, " in shown for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "nosuch"], "there is no column 'nosuch' to order by; there are prompt_tokens"),
        (["--id", "nosuch"], "there is no pair 'nosuch' in the run"),
        (["--lowest", "0"], "--lowest must be at least 1, not 0"),
        (["--data", "nofile.jsonl"], "nofile.jsonl: no such file"),
    ],
)
def test_mistakes_are_told(probing, scored, arguments, message):
    status, out, errors = probing("show", scored[1], *arguments)
    assert (status, out) == (2, "")
    assert message in errors


def test_folders_and_data_that_do_not_fit_are_refused(probing, scored, tmp_path):
    status, _, errors = probing("show", tmp_path)
    assert (status, "holds no finished run of 'probing score'" in errors) == (2, True)
    status, _, errors = probing("show", tmp_path / "nowhere")
    assert (status, "nowhere: no such folder" in errors) == (2, True)
    status, _, errors = probing("show")
    assert (status, errors) == (2, "probing show: FOLDER is required; see probing show --help\n")
    other = write(
        tmp_path / "other.jsonl",
        [{**row, "prompt": "Else?"} if row["id"] == "r3" else row for row in read_lines(scored[0])],
    )
    status, _, errors = probing("show", scored[1], "--data", other)
    assert (status, "these are not the pairs that were scored" in errors) == (2, True)
