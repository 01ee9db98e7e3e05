"""What a user of the commands of refusals gives that is wrong: one line that names it, exit 2, and nothing is left."""

import harness
import pytest
import refusal_runs
import tiny
import torch

from probing.store.directions import open_direction, save_direction
from probing.types import Direction, Place

EXPORT = "--model=bundled --direction={run}/select --format=gguf"
SELECT = "--model=bundled --directions={run}/extract --data={run}/prompts.jsonl"
TRANSFER = "--model=bundled-displaced --from-direction={run}/select --data={run}/prompts.jsonl"
AUDIT = "--reference=bundled --policy=bundled-displaced --data={run}/prompts.jsonl"
EXTRACT = "--model=bundled --data={run}/prompts.jsonl"
GIVEN = {"export": EXPORT, "select": SELECT, "transfer": TRANSFER, "audit": AUDIT, "extract": EXTRACT}
MISTAKES = {
    "export": {
        "--direction={run}/extract": "holds the directions of every place; 'probing refusal select' chooses one",
        "--direction={run}/extract/directions.safetensors": "holds no direction of",
        "--direction={made}/narrow.safetensors": "its width is 8, that of the model 64",
        "--direction={made}/deep.safetensors": "it was read at resid_pre:9, and the model has 4 layers",
        "--direction={made}/attention.safetensors": "a control vector is added to the residual stream",
        "--direction={made}/plane.safetensors": "a subspace of rank 2 has no length",
        "--model=bundled-displaced": "the direction is of bundled, not of bundled-displaced: weights_sha256",
        "--model={made}/plain": "the direction is of bundled, not of ",
        "--coefficient=1e300": "the direction times 1e+300 has no length that float32 can hold",
        "--coefficient=1e-300": "the direction times 1e-300 has no length that float32 can hold",
        "--format=onnx": "--format must be one of model, lora, gguf",
        "--revision=main": "is a folder, which has no revision 'main'",
        "--out={made}": "exists already, and is not written over",
        "--out={made}/narrow.safetensors/below": "narrow.safetensors: ",
    },
    "select": {
        "--directions={run}/select": "holds a run of 'probing refusal select' (done), not a finished one of",
        "--directions={run}/extract/run.json": "no such folder; --directions is what 'probing refusal extract' wrote",
        "--directions={made}": "holds no run.json",
        "--model=bundled-displaced": "the direction is of bundled, not of bundled-displaced",
        # Told of the model, and not of a token that this model has not.
        "--model={made}/other": "the direction is of bundled, not of ",
        "--model={made}/plain": "the tokenizer has no chat template",
        "--data={made}/others.jsonl": "that was held out there is not in ",
        "--refusal-tokens=never in one": "'never in one' is ",
        "--refusal-tokens=5": "of 9 harmful prompts 0 have a refusal score above 0, and 2 are needed. The scores are",
        "--max-length=2": "0 prompts of a kind can be read, and 2 are needed",
        "--pruned=0.99": "none of 6 candidates passes: one of the last 4 layers (6)",
        "--out={run}/extract": "holds a run of 'probing refusal extract', not of 'probing refusal select'",
    },
    "transfer": {
        "--from-direction={run}/extract": "holds the directions of every place",
        "--from-direction={made}/narrow.safetensors": "its width is 8, that of the model 64",
        "--from-direction={made}/plane.safetensors": "a subspace of rank 2; one vector is transferred",
        "--from-model=bundled-displaced": "the direction is of bundled, not of bundled-displaced",
        "--place=resid_pre:77": "has 4 layers, 0 to 3",
        "--data={made}/few.jsonl": "3 rows have the label 'harmful', and at least 4 are needed",
        "--model={made}/other": "no refusal token can be found: it may not refuse at all",
        "--model={made}/plain": "the tokenizer has no chat template",
        "--random-edits=0": "--random-edits must be at least 1",
        "--out={run}/audit": "holds a run of 'probing refusal audit', not of 'probing refusal transfer'",
    },
    "audit": {
        "--policy={made}/other": "has another vocabulary than the reference",
        "--policy=nowhere": "nowhere: no such folder",
        "--direction={made}/narrow.safetensors": "its width is 8, that of the model 64",
        "--direction={run}/extract": "holds the directions of every place",
        "--data={made}/few.jsonl": "3 rows have the label 'harmful', and at least 4 are needed",
        "--refusal-tokens=never in one": "'never in one' is ",
        "--reference={made}/plain": "the tokenizer has no chat template",
        "--dtype=int8": "--dtype must be one of",
        "--out={run}/select": "holds a run of 'probing refusal select', not of 'probing refusal audit'",
        "--out={run}/prompts.jsonl": "is a file; give a folder",
    },
    "extract": {
        "--data={made}/few.jsonl": "3 rows have the label 'harmful', and at least 4 are needed",
        "--refusal-tokens=never in one": "'never in one' is ",
        "--places=resid_pre:9": "has 4 layers, 0 to 3",
        "--rank=2": "a rank of 2 needs the method paired_svd",
        "--validation-share=0": "--validation-share must be above 0.0",
    },
}
CASES = [(command, option) for command, options in MISTAKES.items() for option in options]


@pytest.fixture(scope="module")
def made(tmp_path_factory, refusal_run):
    """Models, directions and prompts that do not fit."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save_model(folder / "other")
    tiny.save_model(folder / "plain", tokenizer=tiny.make_tokenizer(template=None))
    source = open_direction(refusal_run / "select").source
    here = Place("resid_pre", 2)
    directions = {
        "narrow": (torch.ones(8), here),
        "deep": (torch.ones(64), Place("resid_pre", 9)),
        "attention": (torch.ones(64), Place("attn_out", 1)),
        "plane": (torch.eye(64)[:2], here),
    }
    for name, (vector, place) in directions.items():
        save_direction(folder / f"{name}.safetensors", Direction(vector, place, -1, source))
    kinds = [[row for row in refusal_runs.ROWS if row["label"] == kind] for kind in ("harmful", "harmless")]
    harness.write(folder / "few.jsonl", [*kinds[0][:3], *kinds[1][:3]])
    harness.write(folder / "others.jsonl", [row | {"id": f"other {row['id']}"} for row in refusal_runs.ROWS])
    return folder


@pytest.mark.parametrize(("command", "option"), CASES)
def test_a_mistake_is_named(probing, refusal_run, made, tmp_path, command, option):
    places = {"run": refusal_run, "made": made}
    before = sorted(made.rglob("*"))
    given = [word.format(**places) for word in GIVEN[command].split()]
    given = harness.override([*given, f"--out={tmp_path / 'out'}"], [option.format(**places)])
    status, _, errors = probing("refusal", command, *given)
    assert status == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith("probing")]
    assert len(lines) == 1
    assert MISTAKES[command][option] in lines[0]
    assert not list(tmp_path.iterdir())
    assert sorted(made.rglob("*")) == before
