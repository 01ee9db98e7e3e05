import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probing.report.checks import THRESHOLDS
from probing.report.parts import RunData
from probing.report.sections.refusal_evaluate import estimate_change
from probing.report.sections.shared import draw_rows, judge_p, make_rows, measure_outside, name_section, say_p
from probing.types import Estimate

NAN = float("nan")
ROOT = Path(__file__).parents[3]


def make_run(**given):
    return RunData(label="runs/b <b>", command="probe", record={}, files={}, **given)


def test_names_of_sections_are_names_for_links():
    assert name_section(make_run(), "labels") == "labels-runs-b-b"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [((3, 2, 4), (2, 1, 3)), ((-2, -3, -1), (2, 1, 3)), ((0.8, 0.5, 1.2), (-0.2, -0.5, 0.2)), ((NAN,) * 3, (NAN,) * 3)],
)
def test_a_number_lies_outside_of_a_band_on_its_nearer_side(value, wanted):
    found = measure_outside(Estimate(*map(float, value), 7), 0.0, 1.0)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((*wanted, 7), nan_ok=True)
    assert np.isnan(measure_outside(Estimate(1.0, 0.0, 2.0, 7), NAN, NAN).value)


def test_a_change_of_few_answers_has_the_outer_ends_of_what_was_gained_and_lost():
    before = np.zeros(20, dtype=bool)
    found = estimate_change(before, before, np.arange(20))
    reach = 1 - 0.025 ** (1 / 20)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0, -reach, reach, 20))


def test_a_change_of_many_answers_is_a_mean_of_differences():
    before, after = np.arange(300) % 3 == 0, np.arange(300) % 2 == 0
    found = estimate_change(before, after, np.arange(300))
    assert found.value == pytest.approx(after.mean() - before.mean())
    spread = 1.96 * np.std(after.astype(float) - before) / np.sqrt(300)
    assert found.high - found.low == pytest.approx(2 * spread, rel=0.15)


def test_p_values_that_no_draw_could_make_small_are_not_judged():
    judged = judge_p("probe_labels_p", make_run(), "s", 0.5, 10, draws=1, thresholds={})
    assert judged.state == "not judged"
    assert "with 1 draws no p-value is below 0.5" in judged.sentence
    assert judge_p("probe_labels_p", make_run(), "s", 0.5, 10, draws=100, thresholds={}).state == "WARN"
    assert judge_p("probe_labels_p", make_run(), "s", 0.01, 10, draws=100, thresholds={}).state == "ok"
    assert judge_p("probe_labels_p", make_run(), "s", 0.5, 10, draws=100, thresholds={"probe_labels_p": None}) is None
    assert say_p(1 / 21, 20) == "p <= 0.0476, the least that 20 draws can give"
    assert say_p(2 / 21, 20) == "p = 0.0952"


def test_rows_of_one_id_are_told_apart_and_keep_their_texts():
    frame = pd.DataFrame({"id": ["a", "a", "b", "b"], "set": ["x", "y", "x", "x"], "score": [1.0, NAN, 3.0, 4.0]})
    frame["flag"], frame["part"] = [True, False, True, True], pd.array([1, None, 2, 3], dtype="Int64")
    run = make_run(texts={"a": {"text": "A"}, "b": {"text": "B"}})
    columns = {"score": "score", "set": "set", "flag": "flag", "part": "part", "gone": "gone"}
    table = make_rows(run, "s", "Rows", frame, columns, "Rows.", first="score", apart=["set"])
    assert table.ids == ["a (x)", "a (y)", "b (x)", "b (x) #2"]
    assert table.texts == {"text": ["A", "A", "B", "B"]}
    assert [column.kind for column in table.columns] == ["number", "text", "flag", "number"]
    assert table.columns[3].values == pytest.approx([1, NAN, 2, 3], nan_ok=True)
    assert table.name == "rows-s"


def test_bars_count_the_rows_of_every_label_and_lead_to_them():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"score": generator.normal(size=200), "label": generator.choice(list("abcdefgh"), 200)})
    (figure,) = draw_rows(frame, "score", "Scores", "score", "s", by="label")
    assert sum(sum(trace["y"]) for trace in figure["data"]) == 200
    assert len(figure["data"]) == 6
    assert figure["data"][-1]["name"].startswith("others, ")
    assert figure["rows"] == {"table": "rows-s", "column": "score"}
    assert draw_rows(frame.assign(score=NAN), "score", "Scores", "score", "s") == []


def test_every_check_is_in_the_docs():
    listed = re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"))
    assert set(THRESHOLDS) <= set(listed)
