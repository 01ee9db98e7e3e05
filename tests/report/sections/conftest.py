"""One small run of every command on the bundled models, read back as a report reads it."""

from pathlib import Path

import pytest
from harness import make_once, read_lines, write
from refusal_runs import COMMANDS, options_of, write_prompts

from probing.cli import main
from probing.data.bundled import bundled_data
from probing.runs.report.data import read_runs

FEW = ["--resamples", "20", "--places", "resid_post:1,resid_post:3", "--folds", "3"]
PROBES = "--epochs 4 --restarts 1 --pairings 1 --random 5 --refits 2 --permutations 20 --distractor banana".split()


def run_all(folder):
    """Folders of finished runs by command: refusal commands on some of the prompts, the others too."""
    prompts = write_prompts(folder / "prompts.jsonl")
    fresh = write(folder / "fresh.jsonl", read_lines(bundled_data("prompts"))[5::24])
    statements = write(folder / "statements.jsonl", read_lines(bundled_data("statements"))[::13])
    given = ["--model", "bundled", "--data", str(prompts), "--out"]
    commands = {
        "rollouts": [
            "rollouts",
            "--model",
            "bundled",
            "--data",
            "bundled",
            "--limit",
            "20",
            "--out",
            str(folder / "rollouts"),
        ],
        "capture": ["capture", *given, str(folder / "capture"), "--places", "final_norm"],
        "ccs": ["ccs", "--model", "bundled", "--data", str(statements), "--out", str(folder / "ccs"), *FEW, *PROBES],
        "probe": ["probe", *given, str(folder / "probe"), *FEW, "--refits", "2", "--fresh", str(fresh)],
        "clusters": ["clusters", *given, str(folder / "clusters"), *FEW, "--permutations", "20"],
    }
    commands["clusters"] += ["--model", "bundled-displaced", "--no-tsne"]
    for command in COMMANDS:
        commands[f"refusal {command}"] = options_of(command, prompts, folder, folder / command)
    for words in commands.values():
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, words
    return {command: str(folder / command.removeprefix("refusal ")) for command in commands}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A finished run of every command, by command."""
    folders = make_once(tmp_path_factory, "sections", run_all)
    return dict(zip(folders, read_runs([Path(folder) for folder in folders.values()]), strict=True))
