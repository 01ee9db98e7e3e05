"""The commands of ``probing refusal`` with options with which each takes a second or two on the bundled model."""

import json

from harness import write

from probing.data.bundled import bundled_data

FEW = "--resamples 5".split()
LOOSE = "--induce-least -20 --kl-most 1e6".split()
ROWS = [json.loads(line) for line in bundled_data("prompts").read_text(encoding="utf-8").splitlines()][::12]
FURTHER = {
    "extract": [*FEW, "--permutations", "2", "--validation-share", "0.4", "--places", "resid_pre:1,resid_pre:2"],
    "select": LOOSE,
    "evaluate": [*FEW, *"--random-directions 1 --permuted-directions 1 --new-tokens 2 --mode affine".split()],
    "export": [],
    "transfer": [*FEW, *"--permutations 2 --random-edits 1".split()],
    "audit": FEW,
    "trace": [*FEW, *"--refits 2 --folds 3 --random-directions 4 --places resid_pre:2,resid_post:3".split()],
}
COMMANDS = tuple(FURTHER)


def write_prompts(path, change=lambda row: row):
    """Some of the bundled prompts as a file."""
    return write(path, [change(dict(row)) for row in ROWS])


def options_of(command, data, runs, out, model="bundled", policy="bundled-displaced"):
    """Words of a command line.

    Args:
        command: which of ``COMMANDS``.
        data: file of prompts.
        runs: folder in which ``extract`` and ``select`` have written, under their names.
        out: what is written.
        model: the model.
        policy: another, for ``transfer`` and ``audit``.
    """
    given = {
        "extract": ["--model", model, "--data", data],
        "select": ["--model", model, "--data", data, "--directions", runs / "extract"],
        "evaluate": ["--model", model, "--data", data, "--direction", runs / "select", "--extracted", runs / "extract"],
        "export": ["--model", model, "--direction", runs / "select", "--format", "lora"],
        "transfer": ["--from-direction", runs / "select", "--model", policy, "--data", data],
        "audit": ["--reference", model, "--policy", policy, "--data", data],
        "trace": ["--model", model, "--data", data, "--direction", runs / "select"],
    }
    return [str(word) for word in ("refusal", command, *given[command], *FURTHER[command], "--out", out)]
