"""Plots of refusal directions: separation by place, what an edit changes beside its controls, what an audit found."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from probing.report.figures import Figure, make_band, make_figure, make_interval_bars, make_line, name_places

BANDS = {
    "random": ("95 % of random directions", "#999999"),
    "drawn": ("range of random directions", "#999999"),
    "covariance": ("95 % of random directions with the covariance of the states", "#b8860b"),
    "labels": ("95 % of directions under permuted labels", "#3a7d44"),
    "permuted": ("95 % of maps of permuted prompts", "#7d5ba6"),
}
"""Name and colour of each control."""
MEASURED = "#0b2e4a"
COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6")
KINDS = ("harmful", "harmless")
BESIDE = 0.18
"""How far the controls of a number stand to the right of it, where numbers are 1 apart."""


def draw_separation(results: pd.DataFrame, positions: Mapping[int, str]) -> list[Figure]:
    """AUROC of held-out prompts over the places of a model, beside permuted labels; one figure a position.

    Args:
        results: one row a ``place`` and ``position``: ``auroc``, ``auroc_low``, ``auroc_high``, and the band
            ``labels_low`` and ``labels_high``; places in order.
        positions: positions that are drawn, and what each is.
    """
    figures = []
    for position, words in positions.items():
        own = results[(results["position"] == position) & results["auroc"].notna()]
        if own.empty:
            continue
        traces = []
        if {"labels_low", "labels_high"} <= set(own.columns) and own["labels_low"].notna().any():
            ends = own["labels_low"], own["labels_high"]
            traces.append(
                make_band(own["place"], *ends, color="#9fb8c8", name="95 % under permuted labels", opacity=0.3)
            )
        bars = make_interval_bars(own["auroc"], own["auroc_low"], own["auroc_high"])
        line = make_line(own["place"], own["auroc"], "lines+markers", f"position {position}")
        traces.append({**line, "line": {"color": MEASURED}, "error_y": bars})
        title = f"AUROC of held-out prompts, direction at {words}, by place (bars: 95 % intervals)"
        figure = make_figure(traces, title, "place", "AUROC (higher is better)")
        figures.append(name_places(figure, list(dict.fromkeys(results["place"]))))
    return figures


def draw_edit(results: pd.DataFrame, measure: str, title: str, up: str) -> list[Figure]:
    """A measure of harmful and harmless prompts before and after an edit, beside the controls.

    Args:
        results: one row a ``kind`` and ``when``, of one ``measure``: ``value``, ``low``, ``high``, and ``random_low``,
            ``random_median``, ``random_high`` and so on for the controls, NaN where there are none.
        measure: which measure.
        title: title of the figure.
        up: name of its vertical axis, with the unit.
    """
    rows = results[(results["measure"] == measure) & results["kind"].isin(KINDS) & results["value"].notna()]
    if rows.empty:
        return []
    names = (rows["kind"] + ", " + rows["when"]).tolist()
    return [_draw_beside(rows.reset_index(drop=True), names, "value", "", title, up)]


def draw_transfer(results: pd.DataFrame) -> list[Figure]:
    """Directions in another model: AUROC beside random directions and permuted maps, and changes of refusal.

    Args:
        results: one row a ``direction``: ``auroc``, ``removed`` and ``added``, each with ``_low`` and ``_high``, and
            the bands ``random_``, ``permuted_``, ``random_removed_`` and ``random_added_``; NaN where there are none.
    """
    names = results["direction"].tolist()
    title = "AUROC of held-out prompts by their projection (bars: 95 % intervals)"
    figures = [_draw_beside(results, names, "auroc", "auroc_", title, "AUROC (higher is better)")]
    for change, words in (
        ("removed", "harmful prompts, direction removed"),
        ("added", "harmless prompts, direction added"),
    ):
        if not {change, f"{change}_low", f"{change}_high"} <= set(results.columns):
            continue
        ends = {f"random_{change}_low": "drawn_low", f"random_{change}_high": "drawn_high"}
        rows = results[
            ["direction", change, f"{change}_low", f"{change}_high", *(each for each in ends if each in results)]
        ]
        title = f"Change of the refusal log-odds, {words} (bars: 95 % intervals)"
        figures.append(_draw_beside(rows.rename(columns=ends), names, change, f"{change}_", title, "change, nats"))
    return figures


def draw_writers(writers: pd.DataFrame, left: float) -> list[Figure]:
    """What is left of the component along the direction in every matrix, by block.

    Args:
        writers: one row a matrix: ``kind``, ``layer`` (missing: before the blocks) and ``component_left``.
        left: a direction counts as removed where at most this is left.
    """
    known = writers[writers["component_left"].notna()]
    if known.empty:
        return []
    traces = []
    blocks = known["layer"].astype("Float64").fillna(-1.0).to_numpy(dtype=np.float64)
    for (kind, own), color in zip(known.groupby("kind", sort=False), COLORS, strict=False):
        at = blocks[known["kind"].to_numpy() == kind]
        line = make_line(at.tolist(), own["component_left"], "markers", str(kind))
        traces.append({**line, "marker": {"color": color}})
    ends = [float(blocks.min()), float(blocks.max())]
    line = make_line(ends, [left, left], "lines", f"removed: at most {left:g} is left")
    traces.append({**line, "line": {"color": "#999999"}})
    title = "Component along the direction that is left in the policy, by block (1: as much as in the reference)"
    return [make_figure(traces, title, "block (-1: before the blocks)", "component left, share")]


def draw_direction_drift(drift: pd.DataFrame) -> list[Figure]:
    """Cosine of the policy's difference in means with the reference's, over places; one line a position.

    Args:
        drift: one row a ``place`` and ``position``, with ``cosine``; NaN where there is no direction.
    """
    known = drift[drift["cosine"].notna()]
    if known.empty:
        return []
    traces = [
        make_line(own["place"], own["cosine"], "lines+markers", f"position {position}")
        for position, own in known.groupby("position")
    ]
    title = "Refusal direction of the policy beside that of the reference, by place"
    figure = make_figure(traces, title, "place", "cosine (1: the same direction)")
    figure["layout"]["showlegend"] = True
    return [name_places(figure, list(dict.fromkeys(drift["place"])))]


def _draw_beside(rows: pd.DataFrame, names: Sequence[str], column: str, ends: str, title: str, up: str) -> Figure:
    """Points with their intervals, and to the right of each the band of every control that it has."""
    # Numbers stand at 1, 2 and so on: at 0 there would be an axis.
    at = np.arange(1, len(rows) + 1, dtype=np.float64)
    bars = make_interval_bars(rows[column], rows[f"{ends}low"], rows[f"{ends}high"])
    point = make_line(at.tolist(), rows[column], "markers", "measured, with 95 % interval")
    traces = [{**point, "marker": {"color": MEASURED}, "error_y": bars}]
    there = [
        band
        for band in BANDS
        if {f"{band}_low", f"{band}_high"} <= set(rows.columns) and rows[f"{band}_low"].notna().any()
    ]
    for number, band in enumerate(there, start=1):
        words, color = BANDS[band]
        low, high = (rows[f"{band}_{end}"].to_numpy(dtype=np.float64) for end in ("low", "high"))
        middle = rows[f"{band}_median"].to_numpy(dtype=np.float64) if f"{band}_median" in rows else (low + high) / 2
        known = np.isfinite(low)
        line = make_line((at[known] + number * BESIDE).tolist(), middle[known].tolist(), "markers", words)
        marker = {"color": color, "symbol": "diamond-open"}
        traces.append({**line, "marker": marker, "error_y": make_interval_bars(middle[known], low[known], high[known])})
    figure = make_figure(traces, title, "", up)
    axis = {"tickmode": "array", "tickvals": at.tolist(), "ticktext": list(names), "range": [0.5, len(rows) + 0.9]}
    figure["layout"]["xaxis"] |= axis
    return figure
