import dataclasses
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from harness import write
from safetensors.torch import load_file

from probing import Report, cli
from probing.runs import demo

PROBING = str(Path(sys.executable).with_name("probing"))
ROWS = [
    {"id": f"r{n}", "prompt": "Is it ok?", "chosen": f" {'never ' * n}no", "rejected": " always", "n": n}
    for n in range(6)
]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


@pytest.fixture
def score(probing, model_folder, data, tmp_path):
    def run(*arguments, **changes):
        options = {"--model": model_folder, "--data": data, "--out": tmp_path / "out"} | {
            f"--{k.replace('_', '-')}": v for k, v in changes.items()
        }
        return probing("score", *(part for option in options.items() for part in option), *arguments)

    return run


def test_score_then_filter(probing, score, data, tmp_path):
    status, out, errors = score()
    assert status == 0
    wrote = ", ".join(str(tmp_path / "out" / name) for name in ("scores.parquet", "plots.html", "run.json"))
    assert f"wrote {wrote}" in errors
    *_, show, keep = (line.removeprefix("next: probing ") for line in errors.splitlines())
    assert "r5, row 5, ok" in probing(*shlex.split(show))[1]
    assert probing(*shlex.split(keep), "--out", tmp_path / "some.jsonl")[0] == 2  # --out is given already
    assert probing(*shlex.split(keep.replace("kept.jsonl", str(tmp_path / "some.jsonl"))))[0] == 0
    assert "Quantiles of the scores" in out
    assert "Most alike by ches_normalized" in out
    arguments = ["--data", data, "--scores", tmp_path / "out", "--by", "ches_normalized", "--keep-lowest", "0.5"]
    status, out, _ = probing("filter", *arguments, "--out", tmp_path / "kept.jsonl")
    assert status == 0
    assert "kept" in out
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3


def test_json_is_for_machines(score):
    status, out, _ = score("--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["rows_by_status"] == {"ok": 6}
    assert facts["tables"]["Pairs by status"] == [{"status": "ok", "pairs": 6}]
    assert facts["tables"][facts["titles"]["pairs_by_status"]] == facts["tables"]["Pairs by status"]
    assert list(facts["titles"].values()) == list(facts["tables"])


def test_an_error_is_an_object_where_json_was_asked_for(probing, tmp_path):
    absent = tmp_path / "absent.jsonl"
    status, out, errors = probing("score", "--model", "bundled", "--data", absent, "--out", tmp_path / "out", "--json")
    told = json.loads(out)["error"]
    assert (status, told) == (2, {"type": "DataInvalid", "message": f"{absent}: no such file", "exit_status": 2})
    assert errors == f"probing score: {absent}: no such file\n"
    status, out, _ = probing("score", "--json", "--modle", "m")
    assert (status, json.loads(out)["error"]["type"]) == (2, "UsageError")


def test_quiet_says_nothing_beside_the_result(score, monkeypatch):
    monkeypatch.setattr("probing.report.progress._hidden", False)
    ours = logging.getLogger("probing")
    monkeypatch.setattr(ours, "level", ours.level)
    monkeypatch.setattr("probing.report.progress.DELAY_SECONDS", 0)
    status, out, errors = score("--quiet")
    assert (status, "Pairs by status" in out) == (0, True)
    assert [line for line in errors.splitlines() if line] == []


def test_the_version_has_a_short_option_and_the_package_is_a_command(probing):
    status, out, _ = probing("-V")
    assert (status, out) == (0, probing("--version")[1])
    module = subprocess.run([sys.executable, "-m", "probing", "-V"], capture_output=True, text=True)
    assert (module.returncode, module.stdout) == (0, out)


@pytest.mark.parametrize(("short", "name"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_short_names_of_dtypes(score, tmp_path, short, name):
    assert score("--dtype", short)[0] == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["config"]["dtype"], record["model"]["dtype"]) == (name, f"torch.{name}")


def test_tables_fit_the_terminal(score, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = score()
    assert max(map(len, out.splitlines())) <= 60
    assert "--full also shows" in out
    _, out, _ = score("--full")
    assert max(map(len, out.splitlines())) > 80


def test_hyphens_and_underscores_are_alike(score, tmp_path):
    assert score("--batch_tokens=64", "--max-length", "200", "--no_eos")[0] == 0
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert (config["batch_tokens"], config["max_length"], config["eos"]) == (64, 200, False)


@pytest.mark.parametrize("value", ["-1e9", "-.5e9", "-1000000000.0"])
def test_negative_values_need_no_equals_sign(probing, score, data, tmp_path, value):
    assert score()[0] == 0
    arguments = [
        "--data",
        data,
        "--scores",
        tmp_path / "out",
        "--by",
        "ches",
        "--below",
        value,
        "--out",
        tmp_path / "k.jsonl",
    ]
    status, _, errors = probing("filter", *arguments)
    assert (status, "no pair of 6 would be kept" in errors) == (2, True)


def test_a_reader_that_goes_away_is_no_traceback(score, data, tmp_path):
    assert score()[0] == 0
    chosen = f"--data {data} --scores {tmp_path / 'out'} --by ches --keep-lowest 0.5"
    line = f"{PROBING} filter {chosen} --out {tmp_path / 'kept.jsonl'} | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "kept.jsonl").exists()


def test_a_narrow_terminal_encoding_loses_no_result(score, data, tmp_path):
    data.write_text(data.read_text().replace("Is it ok?", "Ist es schön?" * 9))
    assert score(out=tmp_path / "run:1")[0] == 0
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    arguments = [PROBING, "show", str(tmp_path / "run:1")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Ist es sch\\xf6n?" in done.stdout


@pytest.mark.parametrize("out", ["file/deeper", "n" * 300])
def test_places_that_cannot_be_written_leave_with_2(score, tmp_path, out):
    (tmp_path / "file").write_text("x")
    status, _, errors = score(out=tmp_path / out)
    assert status == 2
    assert "Traceback" not in errors


def test_home_is_understood(score, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert score(out="~/mine")[0] == 0
    assert (tmp_path / "mine" / "scores.parquet").exists()


def test_a_revision_of_a_folder_is_refused(score):
    status, _, errors = score("--revision", "v1")
    assert status == 2
    assert "is a folder, which has no revision 'v1'" in errors


REPEATED = {
    "the same spelling": ["--max-length", "9", "--max-length", "8"],
    "with an equals sign": ["--max-length=9", "--max-length", "8"],
    "with an underscore": ["--max_length", "9", "--max-length=9"],
    "a switch": ["--eos", "--no-eos"],
    "beside a file": ["--config", "job.yaml", "--max-length=9", "--max_length=8"],
    "two files": ["--config", "job.yaml", "--config", "job.yaml"],
    "an implicit value": ["--id-column", "a", "--id_column", "b"],
}


@pytest.mark.parametrize("case", REPEATED)
def test_an_option_that_is_given_twice_is_refused(score, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("max_length: 300\n")
    status, out, errors = score(*REPEATED[case])
    assert (status, out) == (2, "")
    name = {"two files": "--config", "an implicit value": "--id-column"}.get(case, "--max-length")
    said = "--eos and --no-eos contradict each other" if case == "a switch" else f"{name} is given twice; it takes one"
    assert said in errors


def test_a_flag_overrides_a_file(score, tmp_path):
    (tmp_path / "job.yaml").write_text("max_length: 3\n")
    assert score("--config", tmp_path / "job.yaml", "--max-length", 300)[0] == 0


def test_several_files_are_read_one_after_the_other(score, data, tmp_path):
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "more.jsonl").write_text(lines[-1].replace('"r5"', '"s5"'))
    status, out, _ = score("--data", tmp_path / "more.jsonl", "--limit", len(lines) + 5, "--json")
    assert status == 0
    assert json.loads(out)["data"]["rows"] == len(lines) + 1
    assert json.loads(out)["config"]["data"] == [str(data), str(tmp_path / "more.jsonl")]


def test_rows_come_from_standard_input(score, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.read_bytes())))
    assert score(data="-")[0] == 0
    assert score(out=tmp_path / "again")[0] == 0
    files = [pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("out", "again")]
    pd.testing.assert_frame_equal(*files)


def test_rows_without_a_prompt_are_refused_or_mapped(probing, score, data, tmp_path):
    rows = [{"task": "Is it ok?", "chosen": " I say no", "rejected": " I say yes"}] * 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, errors = score()
    assert (status, out) == (2, "")
    assert "there is no 'prompt'; the text in 'task' is not read. Name the column of the prompts with" in errors
    assert score("--prompt-column", "task")[0] == 0
    arguments = ["--data", data, "--scores", tmp_path / "out", "--by", "ches_normalized", "--keep-lowest", "0.5"]
    assert probing("filter", *arguments, "--out", tmp_path / "kept.jsonl")[0] == 0
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == rows[0]
    status, _, errors = score("--implicit-prompt")
    assert status == 2
    assert "prompt_column" in errors
    assert score("--implicit-prompt", out=tmp_path / "implicit")[0] == 0


def test_the_part_that_was_scored_is_filtered(probing, score, data, tmp_path):
    assert score("--sample", 4)[0] == 0
    known = json.loads((tmp_path / "out" / "run.json").read_text())
    assert known["data"]["rows"] == 4
    arguments = ["--data", data, "--scores", tmp_path / "out", "--by", "ches_normalized", "--keep-lowest", "1.0"]
    assert probing("filter", *arguments, "--out", tmp_path / "kept.jsonl")[0] == 0
    kept = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert len(kept) == 4
    assert set(kept) < set(data.read_text().splitlines())
    status, _, errors = score("--limit", 4)
    assert status == 2
    assert "data" in errors


def test_json_keeps_every_digit(score, tmp_path):
    import pandas as pd

    _, out, _ = score("--json")
    quantile = json.loads(out)["tables"][
        "Quantiles of the scores (higher: the responses look more alike to the model)"
    ][0]
    assert quantile["quantile_100"] == pd.read_parquet(tmp_path / "out" / "scores.parquet")["ches"].max()


def hurried(jobs):
    """The jobs of the demo with next to no draws and trainings, at a place or two."""
    few = {"epochs": 5, "restarts": 1, "random": 2, "pairings": 0, "refits": 2, "resamples": 10, "permutations": 10}
    few |= {"folds": 3, "tsne": False, "places": "resid_post:1,final_norm"}

    def quicker(settings):
        return replace(settings, **{name: value for name, value in few.items() if name in vars(settings)})

    return {name: lambda out, settings=settings: quicker(settings(out)) for name, settings in jobs.items()}


def test_the_demo_makes_its_own_files_anew_and_leaves_others(probing, tmp_path, monkeypatch):
    assert [settings(tmp_path).out.parent for settings in demo.JOBS.values()] == [tmp_path] * len(demo.JOBS)
    monkeypatch.setattr(demo, "JOBS", hurried({name: demo.JOBS[name] for name in ("displacement", "capture", "ccs")}))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "kept.jsonl").write_text("mine")
    status, _, errors = probing("demo", "--out", tmp_path / "demo")
    assert (status, "exists already" in errors) == (2, True)
    assert (tmp_path / "demo" / "kept.jsonl").read_text() == "mine"
    (tmp_path / "demo" / "kept.jsonl").unlink()
    assert probing("demo", "--out", tmp_path / "demo")[0] == 0
    run = tmp_path / "demo" / "scores" / "run.json"
    run.write_text(run.read_text().replace('"pandas": "', '"pandas": "0.'))  # as if made with an older version
    monkeypatch.setattr(demo, "JOBS", {name: job for name, job in demo.JOBS.items() if name in ("score", "filter")})
    status, out, _ = probing("demo", "--out", tmp_path / "demo")
    assert status == 0
    assert "By kind of pair" in out


def test_flags_win_over_the_file(score, tmp_path):
    (tmp_path / "c.yaml").write_text("batch_tokens: 64\nmax_length: 100\n")
    assert score("--config", tmp_path / "c.yaml", "--max-length", "200")[0] == 0
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert (config["batch_tokens"], config["max_length"]) == (64, 200)


def test_a_command_may_have_two_words(probing, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class ToyConfig:
        """Say a word.

        Args:
            word: the word.
        """

        word: str

    def run(config: ToyConfig) -> Report:
        return Report({"Said": pd.DataFrame({"word": [config.word]})}, {})

    monkeypatch.setitem(cli.COMMANDS, "toy say", "say a word")
    monkeypatch.setitem(sys.modules, "probing.runs.toy", types.ModuleType("probing.runs.toy"))
    job = types.ModuleType("probing.runs.toy.say")
    run.__annotations__["config"] = ToyConfig
    job.run = run
    monkeypatch.setitem(sys.modules, "probing.runs.toy.say", job)
    status, out, _ = probing("toy", "say", "--word", "hello")
    assert (status, "hello" in out) == (0, True)
    status, _, errors = probing("toy", "shout", "--word", "hello")
    assert (status, errors) == (2, "probing: no command 'toy shout' (did you mean toy say?); there are toy say\n")
    status, _, errors = probing("toy")
    assert (status, errors) == (2, "probing: no command 'toy' (did you mean toy say?); there are toy say\n")
    assert re.search(r"\n  toy say +say a word\n", probing("--help")[1])


def test_doctor_says_what_will_run_and_why(probing):
    status, out, _ = probing("doctor")
    assert status == 0
    for part in (
        "Machine",
        "What will run",
        "segment_sum",
        "row_stats",
        "ccs_gradient",
        "pair_distances",
        "project_out",
        "torch threads",
        "transformers",
        "why",
    ):
        assert part in out


def test_help_and_version(probing):
    for arguments in (["--help"], ["score", "--help"], ["filter", "--help"], ["--version"]):
        status, out, _ = probing(*arguments)
        assert status == 0
        assert "probing" in out
    assert "--batch-tokens" in probing("score", "--help")[1]


def seconds_of(*command):
    """Of the processor, which other processes beside this one do not lengthen as they do the time of a clock."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def test_help_answers_at_once():
    """In less time than it takes to import torch: on any machine that is faster than it would be with the libraries."""
    assert seconds_of(PROBING, "--help") < seconds_of(sys.executable, "-c", "import torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: probing COMMAND"),
        (["scoer"], "no command 'scoer' (did you mean score?); there are score, filter"),
        (["score"], "probing score: --model, --data and --out are required; see probing score --help"),
        (
            ["score", "--model", "m", "--data", "d", "--out", "o", "--batch-tokens", "many"],
            "--batch-tokens must be a whole number",
        ),
        (
            ["score", "--model", "m", "--data", "d", "--out", "o", "--batch-tokens", "0"],
            "probing score: --batch-tokens must be at least 1, not 0",
        ),
        (["score", "--model", "m", "--data", "d", "--out", "o", "--dtype", "int4"], "dtype"),
        (["score", "--model", "m", "--data", "d", "--out", "o", "--nosuch", "1"], "--nosuch"),
        (["filter", "--data", "d", "--scores", "s", "--by", "b", "--out", "o"], "exactly one of --keep-lowest"),
        (
            ["filter", "--data", "d", "--scores", "s", "--by", "b", "--out", "o", "--keep-lowest", "5"],
            "at most 1, not 5",
        ),
    ],
)
def test_bad_arguments_leave_with_2(probing, arguments, message):
    status, out, errors = probing(*arguments)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors
    assert out == ""


def test_unknown_keys_in_the_file_are_refused(score, tmp_path):
    (tmp_path / "c.yaml").write_text("batch_tokenz: 64\n")
    status, _, errors = score("--config", tmp_path / "c.yaml")
    assert status == 2
    assert "batch_tokenz" in errors


def test_scores_of_likelihood_then_keeping_the_highest_rates(probing, score, data, tmp_path):
    status, out, _ = score("--columns", "all,displacement_rate", "--no-eos")
    assert status == 0
    for part in ("Quantiles of likelihoods", "Quantiles of displacement rates", "ranking accuracy"):
        assert part in out
    arguments = ["--data", data, "--scores", tmp_path / "out", "--by", "displacement_rate", "--keep-highest", "0.5"]
    assert probing("filter", *arguments, "--out", tmp_path / "kept.jsonl")[0] == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3


@pytest.fixture
def displacement(probing, model_folder, data, tmp_path):
    def run(*arguments, **changes):
        options = {"reference": model_folder, "policy": model_folder, "data": data, "out": tmp_path / "moved"} | changes
        given = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
        return probing("displacement", *given, *arguments)

    return run


def test_displacement_from_the_command_line(displacement, tmp_path):
    status, out, errors = displacement("--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["rows_by_status"] == {"ok": 6}
    assert facts["tables"]["Notes"][0]["note"].startswith("The policy gives exactly the reference's probabilities")
    assert f"wrote {tmp_path / 'moved' / 'displacement.parquet'}" not in out
    status, out, errors = displacement()  # answered again, in words
    assert "From reference to policy" in out
    assert "displacement.parquet" in errors


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"policy": None}, [], "exactly one of --policy, --adapter and --steps; given: none"),
        ({"policy": "/nowhere/model"}, [], "/nowhere/model"),
        ({"reference": "/nowhere/model"}, [], "/nowhere/model"),
        ({"data": "/nowhere/pairs.jsonl"}, [], "no such file"),
        ({}, ["--beta", "-1"], "beta must be above 0"),
        ({}, ["--top", "-2"], "top must be at least 0"),
        ({}, ["--top", "many"], "top"),
        ({}, ["--predictors", "ches,magic"], "unknown predictors magic"),
        ({}, ["--predictors", "displacement_rate_exact", "--rate-parameters", "last:9"], "last:1 to last:3"),
        ({}, ["--group-column", "kind"], "has no 'kind'; it has id, prompt"),
        ({}, ["--rater-share-column", "n"], "'n' must be a share of raters, 0 to 1, not 2"),
        ({"policy": None, "steps": "/nowhere/steps"}, [], "no such folder of checkpoints"),
        ({"policy": None, "adapter": "/nowhere/adapter"}, [], "no adapter_config.json"),
        ({}, ["--max-length", "9000"], "only has positions for 512"),
        ({}, ["--nosuch"], "--nosuch"),
    ],
)
def test_bad_requests_for_displacement_leave_with_2_and_nothing_written(
    displacement, tmp_path, changes, arguments, message
):
    status, out, errors = displacement(*arguments, **changes)
    assert (status, out) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "moved").exists()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("chess", "unknown columns chess; there are id"),
        ("all,magic", "unknown columns magic; there are id"),
        (",", "--columns is empty; there are id"),
        ("", "--columns is empty; there are id"),
    ],
)
def test_unknown_columns_are_refused_before_the_model_is_loaded(score, columns, said):
    status, _, errors = score("--columns", columns, model="/nowhere/model")
    assert status == 2
    assert errors.startswith(f"probing score: {said}")


def test_a_limit_and_a_sample_exclude_each_other(score):
    status, _, errors = score("--limit", "3", "--sample", "3")
    assert status == 2
    assert "give at most one of --limit and --sample: --limit takes the first rows, --sample takes rows" in errors


# One line each: how to break the data, and what must be said of it.
BAD_DATA = {
    "missing file": (lambda path: path.unlink(), "pairs.jsonl: no such file"),
    "empty file": (lambda path: path.write_text(""), "pairs.jsonl: the file is empty"),
    "broken JSON": (
        lambda path: path.write_text('{"prompt": "a"}\n{"prompt": \n'),
        "pairs.jsonl, line 2: broken JSON at column",
    ),
    "not UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "line 1: byte 0xff is not UTF-8; convert the file"),
    "missing column": (
        lambda path: path.write_text('{"prompt": "a", "chosen": "b"}\n'),
        "no column 'rejected'; the columns are prompt, chosen",
    ),
    "wrong type": (
        lambda path: path.write_text(
            '{"id": "j", "prompt": "q", "chosen": "a", "rejected": "b"}\n'
            '{"id": "k", "prompt": "q", "chosen": 7, "rejected": "b"}\n'
        ),
        "line 2 (id 'k'): 'chosen' must be text or a list of messages, found int (7)",
    ),
    "duplicate ids": (
        lambda path: path.write_text('{"id": "k", "prompt": "a", "chosen": " b", "rejected": " c"}\n' * 2),
        "line 2: id 'k' in column 'id' was already used at",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_leaves_with_2_and_nothing_written(score, data, tmp_path, case):
    change, message = BAD_DATA[case]
    change(data)
    status, out, errors = score()
    assert (status, out) == (2, "")
    assert message in errors
    assert errors.startswith("probing score: ")
    assert not (tmp_path / "out").exists()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def homemade(folder):
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "code.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def more_tokens(folder):
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens([f"<new{number}>" for number in range(200)])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def no_template(folder):
    (folder / "chat_template.jinja").unlink()
    messages = {
        "id": "k",
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    (folder.parent / "pairs.jsonl").write_text(json.dumps(messages) + "\n")


BAD_MODELS = {
    "no tokenizer": (no_tokenizer, "no tokenizer (tokenizer.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights (*.safetensors)"),
    "pickle only": (pickle, "convert them to safetensors"),
    "truncated": (truncate, "a weight file is damaged or cut short"),
    "remote code": (homemade, "add --trust-remote-code\n"),
    "more tokens than rows": (more_tokens, "the model's embedding only 420 rows"),
    "no chat template": (
        no_template,
        "line 1 (id 'k'): the pair is made of messages, but the tokenizer has no chat template",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_leave_with_2_and_nothing_written(score, tmp_path, case):
    change, message = BAD_MODELS[case]
    folder = tiny.save_model(tmp_path / "model")
    change(folder)
    status, out, errors = score(model=folder)
    assert (status, out) == (2, "")
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_trusted_are_counted_and_then_stop_the_filter(probing, score, data, tmp_path):
    rows = [
        *ROWS,
        {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"},
        {"id": "empty", "prompt": "Q", "chosen": "", "rejected": " a"},
        {"id": "far", "prompt": "Q" * 99, "chosen": " a", "rejected": " b"},
        {"id": "cut", "prompt": "Q", "chosen": " a" * 99, "rejected": " b"},
    ]
    write(data, rows)
    status, out, _ = score("--max-length", "60", "--json")
    assert status == 0
    counts = json.loads(out)["rows_by_status"]
    assert counts == {"ok": 6, "identical": 1, "empty_response": 1, "prompt_too_long": 1, "truncated": 1}
    arguments = [
        "--data",
        data,
        "--scores",
        tmp_path / "out",
        "--by",
        "ches",
        "--below",
        "1e9",
        "--out",
        tmp_path / "kept.jsonl",
    ]
    status, _, errors = probing("filter", *arguments)
    assert status == 2
    assert "4 of 10 pairs have no score that can be trusted" in errors
    assert "line 7 (id 'same'): identical; " in errors
    assert not (tmp_path / "kept.jsonl").exists()
    assert probing("filter", *arguments, "--bad", "drop")[0] == 0


def test_weights_that_are_not_finite(score, tmp_path):
    language_model = tiny.make_model()
    language_model.model.model.layers[1].self_attn.q_proj.weight.data[:] = float("nan")
    language_model.model.save_pretrained(tmp_path / "model")
    language_model.tokenizer.save_pretrained(tmp_path / "model")
    status, _, errors = score(model=tmp_path / "model")
    assert status == 2
    assert "first: line 1 (id 'r0'): states are NaN or infinite from layer 1 on" in errors


def test_the_folder_of_another_run(score, tmp_path):
    assert score()[0] == 0
    before = (tmp_path / "out" / "scores.parquet").read_bytes()
    status, _, errors = score("--max-length", "100")
    assert status == 2
    assert "options.max_length was None, is 100" in errors
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == before


def test_an_interrupt_leaves_with_130(score, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("probing.runs.common.parts.write_shard", interrupt)
    status, out, errors = score()
    assert (status, out) == (130, "")
    assert "the same command goes on from here" in errors


def test_a_full_disk_leaves_no_partial_file_and_the_run_goes_on_later(score, data, model_folder, tmp_path):
    """A real limit on file size, as a quota sets it, in a process of its own."""
    write(data, [{**ROWS[0], "id": f"r{n}"} for n in range(600)])
    arguments = [PROBING, "score", "--model", model_folder, "--data", data, "--out", tmp_path / "out"]
    limited = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000,) * 2); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "nothing partial was left" in done.stderr
    assert "Traceback" not in done.stderr
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left <= {"run.json"}
    assert score()[0] == 0


def test_no_space_left_is_told_in_one_line(score, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    status, out, errors = score()
    assert (status, out) == (1, "")
    assert "No space left on device; nothing partial was left" in errors
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_what_was_not_foreseen_keeps_its_traceback(score, monkeypatch):
    def wrong(*_, **options):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("probing.runs.score.stages.PairScorer", wrong)
    with pytest.raises(ZeroDivisionError):
        score()
