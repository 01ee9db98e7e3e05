"""Each example runs as it stands, and shows what its documentation says."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SHOWN = {
    "filter_then_dpo": "288 of 320 pairs are trained on",
    "dpo_with_callback": "both down (chosen -",
    "compare_checkpoints": "step 12: ln p of the chosen responses changed by -",
    "rollouts_with_geometry": "step 4: log-odds of refusing harmful prompts +",
}


def test_every_example_is_tried_and_documented():
    assert sorted(SHOWN) == sorted(path.stem for path in FOLDER.glob("*.py"))
    page = (FOLDER.parent / "docs/training.md").read_text("utf-8")
    assert all(f"examples/{name}.py" in page for name in SHOWN)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", SHOWN)
def test_the_example_shows_what_it_should(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out
