"""Plots for people, as pages that need nothing else; drawn where plotly is installed."""

from pathlib import Path

import pandas as pd

from probing.store.files import new_file

QUARTILES = (0.25, 0.75)
_COLORS = {"chosen": "#1b6ca8", "rejected": "#c8553d"}


def draw_course(course: pd.DataFrame, path: Path) -> bool:
    """Log-probabilities of both responses over the steps of a training: the mean, and the middle half of the pairs.

    Args:
        course: ``step``, ``chosen_logprob``, ``rejected_logprob``, one row a step and pair.
        path: of the page.

    Returns:
        Whether it was drawn; False where plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        return False
    figure = go.Figure()
    for side, color in _COLORS.items():
        values = course.groupby("step")[f"{side}_logprob"]
        low, high = (values.quantile(share) for share in QUARTILES)
        steps = list(low.index)
        figure.add_scatter(
            x=steps + steps[::-1],
            y=[*high, *low[::-1]],
            mode="lines",
            fill="toself",
            line={"width": 0},
            opacity=0.2,
            fillcolor=color,
            name=f"{side}, middle half of the pairs",
            hoverinfo="skip",
        )
        figure.add_scatter(x=steps, y=values.mean(), line={"color": color}, mode="lines+markers", name=f"{side}, mean")
    figure.update_layout(
        title="Log-probability of the responses over training",
        xaxis_title="step (0: the reference)",
        yaxis_title="ln p(response), nats",
        template="plotly_white",
    )
    with new_file(path) as temporary:
        temporary.write_text(figure.to_html(include_plotlyjs=True, div_id="course"), encoding="utf-8")
    return True
