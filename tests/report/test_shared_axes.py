"""Figures of several runs side by side have the same axes, and those of different measures their own."""

import numpy as np

from probing.report.figures import make_figure, make_histogram, make_interval_bars, make_line, name_places, stack_bars
from probing.report.parts import Section
from probing.report.shared_axes import share_axes


def histogram(values, edges, across="nats"):
    return stack_bars(make_figure([make_histogram(values, np.array(edges), "pairs", "red")], "title", across, "pairs"))


def sections(*figures, question="Why?"):
    return [Section(f"s{number}", question, f"r{number}", figures=[figure]) for number, figure in enumerate(figures)]


def ranges(figure):
    return [figure["layout"][axis].get("range") for axis in ("xaxis", "yaxis")]


def test_distributions_of_two_runs_span_both():
    one, other = histogram([0.5, 0.6, 1.5], [0.0, 1.0, 2.0]), histogram([-3.5], [-4.0, -3.0])
    share_axes(sections(one, other))
    assert ranges(one) == ranges(other) == [[-4.0, 2.0], [0.0, 2.08]]


def test_figures_of_another_measure_or_question_keep_their_axes():
    figures = [histogram([0.5], [0.0, 1.0]), histogram([5.5], [5.0, 6.0], across="tokens")]
    share_axes(sections(*figures))
    alone = sections(histogram([5.5], [5.0, 6.0]), question="How?")
    share_axes([*sections(figures[0]), *alone])
    assert [ranges(figure) for figure in (*figures, alone[0].figures[0])] == [[None, None]] * 3


def test_intervals_of_points_are_in_the_range_and_names_stay_names():
    figures = []
    for value, half in ((1.0, 0.5), (3.0, np.nan)):
        line = make_line(["a", "b"], [value, value], "lines", "run")
        bars = make_interval_bars([value] * 2, [value - half] * 2, [value + half] * 2)
        figures.append(
            name_places(make_figure([{**line, "error_y": bars}], "title", "place", "silhouette"), ["a", "b"])
        )
    share_axes(sections(*figures))
    assert [ranges(figure) for figure in figures] == [[None, [0.5, 3.1]]] * 2


def test_a_measure_without_any_value_stays_as_it_is():
    figures = [make_figure([make_line([], [], "lines", "run")], "title", "step", "nats") for _ in range(2)]
    share_axes(sections(*figures))
    assert [ranges(figure) for figure in figures] == [[None, None]] * 2
