import numpy as np
import pandas as pd
import pytest

from probing.report import plots
from probing.report.svg import draw_svg
from probing.types import Estimate


def test_a_histogram_of_every_column_with_the_suggested_threshold():
    scores = pd.DataFrame({"ches": [1.0, 2.0, np.nan, 4.0], "empty": [np.nan] * 4, "edit": [0.1, 0.2, 0.3, 0.4]})
    axes = {"ches": "ches (higher: more alike)", "empty": "empty", "edit": "edit"}
    drawn = plots.draw_scores(scores, axes, {"ches": (3.0, "--drop-highest 0.2")})
    assert [figure["title"] for figure in drawn] == [
        "Distribution of ches over 3 pairs",
        "Distribution of edit over 4 pairs",
    ]
    layout = drawn[0]["layout"]
    assert [layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")] == ["ches (higher: more alike)", "pairs"]
    assert [shape["x0"] for shape in layout["shapes"]] == [3.0]
    assert layout["annotations"][0]["text"] == "--drop-highest 0.2"
    assert "shapes" not in drawn[1]["layout"]
    assert sum(drawn[0]["data"][0]["y"]) == 3


def test_what_was_dropped_stands_on_what_was_kept():
    scores = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    drawn = plots.draw_filter(scores, np.array([True, True, False, False, False]), "ches", (0.25, "x"))
    kept, dropped = drawn[0]["data"]
    assert (sum(kept["y"]), sum(dropped["y"])) == (2, 2)
    assert (kept["name"], dropped["name"]) == ("kept, 2 pairs", "dropped, 3 pairs")
    assert kept["x"] == dropped["x"]
    assert drawn[0]["layout"]["barmode"] == "stack"
    assert drawn[0]["title"] == "Pairs that were kept and dropped by ches; 1 pairs have no score"
    assert plots.draw_filter(np.full(2, np.nan), np.array([True, False]), "ches", None) == []


def test_displaced_pairs_are_marked_and_their_share_is_told_with_its_interval():
    pairs = pd.DataFrame(
        {"chosen_change": [-2.0, -1.0, 1.0], "rejected_change": [-4.0, 0.0, 0.5], "displaced": [True, False, False]}
    )
    chosen, rejected = plots.draw_changes(pairs, Estimate(1 / 3, 0.01, 0.9, 3))
    assert [sum(trace["y"]) for trace in chosen["data"]] == [1, 2]
    assert "share displaced 0.3333 (95 % interval 0.01 to 0.9)" in chosen["title"]
    assert chosen["layout"]["xaxis"]["range"] == rejected["layout"]["xaxis"]["range"]
    assert chosen["layout"]["xaxis"]["title"]["text"] == "change of ln p(chosen), nats (below 0: it lost probability)"
    drawn = plots.draw_changes(pairs[:1], Estimate(1.0, np.nan, np.nan, 1))
    assert "interval" not in drawn[0]["title"]


def test_the_course_shows_changes_with_their_intervals():
    rows = [
        {"step": step, "measure": measure, "mean": -step / 10, "low": -step / 10 - 1, "high": -step / 10 + 2}
        for measure in ("chosen", "rejected", "margin")
        for step in (0, 1, 2, 100, 200)
    ]
    course = pd.DataFrame(rows).assign(quarter=-1.0, three_quarters=1.0, pairs=7)
    drawn = plots.draw_course(course)
    lines = {trace["name"]: trace for trace in drawn[0]["data"] if "error_y" in trace}
    assert list(lines) == [f"{name}, mean with 95 % interval" for name in ("ln p(chosen)", "ln p(rejected)", "margin")]
    chosen = lines["ln p(chosen), mean with 95 % interval"]
    assert (chosen["x"], chosen["y"]) == ([0, 1, 2, 100, 200], [0, -0.1, -0.2, -10, -20])
    assert chosen["error_y"]["array"] == pytest.approx([2] * 5)
    assert chosen["error_y"]["arrayminus"] == pytest.approx([1] * 5)
    # Steps 1 and 2 stand too near 0 to be named.
    assert drawn[0]["layout"]["xaxis"]["tickvals"] == [0, 100, 200]
    assert drawn[0]["layout"]["yaxis"]["title"]["text"] == "change against the reference, nats"
    assert plots.draw_course(course[:0]) == []


def test_of_many_categories_those_with_the_most_rows_are_drawn():
    results = [{"model": "m", "place": p, "metric": "dunn", "value": 2.0, "low": 1.0, "high": 3.0} for p in "ab"]
    results = pd.DataFrame(results).assign(labels_low=0.1, labels_high=0.2)
    categories = pd.DataFrame(
        [
            {"model": "m", "metric": "silhouette", "place": p, "category": f"c{n:03d}", "value": 0.5, "rows": n}
            for n in range(100)
            for p in "ab"
        ]
    )
    index, heat = plots.draw_clusters(results, categories, {})
    assert index["title"] == "Dunn index, by place (bars: 95 % intervals)"
    assert index["layout"]["yaxis"]["title"]["text"] == "dunn (higher: further apart)"
    assert index["layout"]["yaxis"]["type"] == "log"
    assert heat["data"][0]["y"] == [f"c{n:03d}" for n in range(60, 100)]
    assert heat["title"] == "Silhouette by category and place, m (the 40 categories with the most rows, of 100)"


def test_infinite_indices_leave_an_axis_of_the_finite_ones():
    results = pd.DataFrame({"model": "m", "place": ["a", "b"], "metric": "dunn", "value": [2.0, np.inf]})
    results = results.assign(low=1.0, high=[3.0, np.inf], labels_low=0.5, labels_high=0.9)
    none = pd.DataFrame({"model": [], "metric": []})
    drawn = plots.draw_clusters(results, none, {})
    assert drawn[0]["layout"]["yaxis"]["ticktext"][:3] == ["0.1", "0.2", "0.5"]
    results = results.assign(**dict.fromkeys(["value", "low", "high", "labels_low", "labels_high"], np.inf))
    assert len(plots.draw_clusters(results, none, {})) == 1


def test_a_position_of_candidates_has_one_place_in_all_figures():
    nan = float("nan")
    table = pd.DataFrame(
        {"place": ["resid_pre:1"] * 2, "position": [-2, -1], "bypass": [nan, 1.0], "induce": [2.0, 3.0]}
    )
    drawn = plots.draw_candidates(table.assign(kl=nan, cosmic=nan))
    names = ["position -2", "position -1"]
    assert [[line["name"] for line in figure["data"]] for figure in drawn] == [names, names]
    assert all(figure["layout"]["showlegend"] for figure in drawn)
    assert [[line["y"] for line in figure["data"]] for figure in drawn] == [[[], [1.0]], [[2.0], [3.0]]]


def test_a_picture_of_a_million_pairs_is_as_small_as_one_of_few():
    generator = np.random.default_rng(0)
    change = generator.normal(size=1_000_000)
    pairs = pd.DataFrame({"chosen_change": change, "rejected_change": change - 1, "displaced": change < 0})
    for count in (50, len(pairs)):
        for figure in plots.draw_changes(pairs[:count], Estimate(0.5, 0.49, 0.51, count)):
            assert len(draw_svg(figure, "f")) < 20_000
