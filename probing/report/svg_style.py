"""Colours and text of pictures, in both colour schemes."""

SERIES = 6
LIGHT = {"ink": "#1b1d20", "paper": "#ffffff", "grid": "#d5d8dc"} | {
    f"series-{number}": color
    for number, color in enumerate(("#0072b2", "#d55e00", "#00805f", "#a0569a", "#8a6d00", "#6b6b6b"), 1)
}
DARK = {"ink": "#e4e6e9", "paper": "#15171a", "grid": "#3a3f45"} | {
    f"series-{number}": color
    for number, color in enumerate(("#56b4e9", "#f28e4b", "#2fc49b", "#d58fd0", "#e0c040", "#a8a8a8"), 1)
}
"""Hues that people with any kind of colour blindness can tell apart, after Okabe and Ito; at least 3:1 on paper."""
COLORS = {
    "#1b6ca8": 1,
    "#c8553d": 2,
    "#3a7d44": 3,
    "#7d5ba6": 4,
    "#b8860b": 5,
    "#555555": 6,
    "#999999": 6,
    "#d9b38c": 5,
    "#9fb8c8": 1,
    "#0b2e4a": 0,
}
"""The series whose colour stands for a colour of a figure; 0 is the colour of the text."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 3")


def _write_variables(colors: dict[str, str]) -> str:
    return "".join(f"--{name}:{color};" for name, color in colors.items())


_SERIES_RULES = "\n".join(
    f".fig-s{number}{{--c:var(--series-{number})}}"
    + (f" .fig-s{number} .fig-line{{stroke-dasharray:{dash}}}" if dash else "")
    for number, dash in enumerate(DASHES, 1)
)
SVG_STYLE = f""":root{{color-scheme:light dark;{_write_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_write_variables(DARK)}}}}}
.fig{{margin:0 0 2.2rem;max-width:40rem;color:var(--ink)}}
.fig-wide{{max-width:60rem}}
.fig figcaption{{font-weight:600;margin:0 0 .4rem;overflow-wrap:anywhere}}
.fig-scroll{{overflow-x:auto}}
.fig-wide .fig-scroll>svg{{min-width:40rem}}
.fig-scroll>svg{{display:block;width:100%;height:auto;font:13px system-ui,sans-serif;fill:currentColor}}
.fig-scroll>svg text{{fill:currentColor;stroke:none}}
.fig-grid{{stroke:var(--grid);fill:none}}
.fig-axis,.fig-mark{{stroke:currentColor;fill:none}}
.fig-mark{{stroke-dasharray:5 3;stroke-width:1.5}}
.fig-s0{{--c:var(--ink)}}
{_SERIES_RULES}
.fig-bar{{fill:var(--c);stroke:var(--paper);stroke-width:.5}}
.fig-line{{stroke:var(--c);fill:none;stroke-width:2}}
.fig-error{{stroke:var(--c);fill:none;stroke-width:1.2}}
.fig-band{{fill:var(--c);stroke:var(--c);stroke-opacity:.5}}
.fig-dot{{stroke:var(--c);stroke-width:6;stroke-linecap:round}}
.fig-thin{{stroke:var(--c);stroke-width:1.6;fill:none}}
.fig .bar{{cursor:pointer}}
.fig .bar:hover,.fig .bar:focus-visible{{stroke:var(--ink);stroke-width:2}}
.fig-legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.3rem 0 0;padding:0;font-size:.88rem}}
.fig-legend li{{display:flex;align-items:center;gap:.4rem;overflow-wrap:anywhere}}
.fig-key{{width:28px;height:14px;flex:none}}
@media (max-width:600px){{.fig-scroll>svg{{font-size:15.5px}}}}
@media print{{.fig{{break-inside:avoid}}}}
"""
"""The rules that pictures need; their names begin with "fig-", and the colours are variables that a page may set."""
