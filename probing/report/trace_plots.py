"""Plots of a trace: agreement and log-odds by depth, and projections token by token."""

import pandas as pd

from probing.report.figures import (
    Figure,
    make_band,
    make_figure,
    make_interval_bars,
    make_line,
    mark_value,
    name_places,
)

COLORS = {"harmful": "#c8553d", "harmless": "#1b6ca8"}
HEADS = {
    "decision_f1": ("head of the decision", "#0b2e4a"),
    "kind_agreement": ("head of the kind", "#b8860b"),
    "across_f1": ("trained without each source", "#3a7d44"),
}
RANDOM = "#999999"


def draw_trace(places: pd.DataFrame, bands: pd.DataFrame) -> list[Figure]:
    """Agreement of heads and refusal log-odds over the places of a model, and quantiles of projections by token.

    Args:
        places: one row a ``place``, in order, with a ``depth``: columns of the heads (``decision_f1`` and so on, each
            with ``_low`` and ``_high``) and of the logit lens (``lens_harmful``, ``lens_harmless``), where measured.
        bands: one row ``aligned_at``, ``kind`` and ``position``: ``quantile_10`` to ``quantile_90``, ``random_low`` and
            ``random_high``; empty without a direction.
    """
    figures = [*_draw_heads(places), *_draw_lens(places)]
    if len(bands):
        for align, rows in bands.groupby("aligned_at", sort=False):
            figures.append(_draw_bands(rows, str(align)))
    return figures


def _draw_heads(places: pd.DataFrame) -> list[Figure]:
    traces = []
    known = places[places["depth"].notna()]
    for name, (words, color) in HEADS.items():
        if name not in known or not known[name].notna().any():
            continue
        own = known[known[name].notna()]
        bars = make_interval_bars(own[name], own[f"{name}_low"], own[f"{name}_high"])
        traces.append(
            {**make_line(own["place"], own[name], "lines+markers", words), "error_y": bars, "line": {"color": color}}
        )
    if not traces:
        return []
    own = known[known["decision_f1"].notna()]
    ends = own["decision_f1_labels_low"], own["decision_f1_labels_high"]
    traces.insert(0, make_band(own["place"], *ends, color=RANDOM, name="95 % under permuted labels", opacity=0.3))
    title = "Agreement with the model's decision, by place (bars: 95 % intervals)"
    return [name_places(make_figure(traces, title, "place", "F1 of refusal"), known["place"].tolist())]


def _draw_lens(places: pd.DataFrame) -> list[Figure]:
    if "lens_gap" not in places or not places["lens_gap"].notna().any():
        return []
    own = places[places["lens_gap"].notna()]
    traces = []
    for kind, color in COLORS.items():
        ends = own[f"lens_{kind}_low"], own[f"lens_{kind}_high"]
        traces.append(make_band(own["place"], *ends, color=color, name=f"{kind}, 95 % of the mean", opacity=0.25))
        traces.append(
            {**make_line(own["place"], own[f"lens_{kind}"], "lines", f"{kind}, mean"), "line": {"color": color}}
        )
    title = "Refusal log-odds read behind each block by final norm and output head"
    return [name_places(make_figure(traces, title, "place", "log-odds, nats"), own["place"].tolist())]


def _draw_bands(rows: pd.DataFrame, align: str) -> Figure:
    traces = []
    for kind, color in COLORS.items():
        own = rows[rows["kind"] == kind]
        if not len(own):
            continue
        for low, high, opacity in ((10, 90, 0.12), (25, 75, 0.25)):
            ends = own[f"quantile_{low}"], own[f"quantile_{high}"]
            name = f"{kind}, {low} to {high} %"
            traces.append(make_band(own["position"], *ends, color=color, name=name, opacity=opacity))
        line = make_line(own["position"], own["quantile_50"], "lines", f"{kind}, median")
        traces.append({**line, "line": {"color": color}})
        if own["random_low"].notna().all():
            ends = own["random_low"], own["random_high"]
            name = f"95 % of random directions, {kind}"
            traces.append(make_band(own["position"], *ends, color=RANDOM, name=name, opacity=0.2))
    title = f"Projection on the direction, token by token, around the {align}"
    figure = make_figure(traces, title, f"tokens from the {align}", "projection (units of the states)")
    return mark_value(figure, -0.5, align)
