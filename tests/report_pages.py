"""Pages for tests: a small one whose texts try to be more than text, and one of ten thousand pairs."""

import random

import numpy as np
import pandas as pd

from probing.report.figures import make_figure, make_histogram
from probing.report.parts import Check, Page, Provenance, PulledTokens, RowColumn, RowTable, Section, Tokens

NAN = float("nan")
PLANTED = (
    "<script>window.canary = 1</script>",
    "</script><script>window.canary = 2</script>",
    "<!-- <script>",
    '"><img src=x onerror="window.canary = 3">',
    "' onfocus='window.canary = 4' autofocus='",
    "\x1b[31mred\x1b[0m",
    "left \u202e turned \u2066 right",
    "line\u2028separator",
    "lone \ud800 half",
    "&lt;b&gt; &amp; &#60;",
)
"""Texts that a page must show and not obey."""
WORDS = "the a boat carries glue and string to an answer that nobody wrote down while paper waits near the wood".split()


def make_bars():
    """A figure whose six bars lead to rows."""
    edges = np.arange(-3.0, 4.0)
    bars = make_histogram(np.repeat(edges[:-1] + 0.5, range(1, 7)), edges, "pairs", "#1b6ca8")
    figure = make_figure([bars], f"Figure {PLANTED[0]}", "change, nats", "pairs")
    return {**figure, "rows": {"table": "pairs", "column": "change"}}


def make_tokens(rows, generator, count):
    """Random tokens of every row, so many each but none of the last row; those of a hundred rows come again."""
    drawn = min(rows, 100) * count
    words = np.array([f" {word}" for word in WORDS])
    before, change = -np.abs(generator.normal(0, 2, drawn)), generator.normal(0, 1, drawn)
    others = words[generator.integers(0, len(words), (drawn, 3))].tolist()
    shares = np.sort(generator.uniform(0, 1e-2, (drawn, 3, 2))).tolist()
    gained = [
        [(text, *pair) for text, pair in zip(some, pairs, strict=True)]
        for some, pairs in zip(others, shares, strict=True)
    ]
    tokens = words[generator.integers(0, len(words), drawn)].tolist()
    total, times = count * (rows - 1), rows * count // drawn + 1
    offsets = [*range(0, total + 1, count), total]
    many = [(list(values) * times)[:total] for values in (tokens, before.tolist(), (before + change).tolist(), gained)]
    return Tokens(offsets, *many)


def make_rows(rows, characters, tokens, name="pairs"):
    """A table of pairs with random numbers, texts of about so many characters, and tokens."""
    generator, plain = np.random.default_rng(0), random.Random(0)
    drawn = [" ".join(plain.choice(WORDS) for _ in range(characters // 5)) for _ in range(100)]
    change = generator.normal(0, 1, rows)
    change[rows // 2] = NAN
    # On an edge between two bars, and at the end of the last.
    change[:2] = 0, 3
    numbers = {f"score_{at}": generator.normal(0, 10.0**at, rows) for at in range(6)}
    return RowTable(
        name=name,
        title=f"Pairs of {name}",
        ids=[f"{name}-{row:05d}" for row in range(rows)],
        columns=[
            RowColumn("change", "change of ln p(chosen), nats", change.tolist(), "number"),
            RowColumn("displaced", "displaced", (change < 0).tolist(), "flag"),
            RowColumn("kind", "kind of pair", [("near", "far")[row % 2] for row in range(rows)], "text"),
            *(RowColumn(name, name.replace("_", " "), values.tolist(), "number") for name, values in numbers.items()),
        ],
        texts={
            kind: [f"{kind} {row} {drawn[row % 100]}" for row in range(rows)]
            for kind in ("prompt", "chosen", "rejected")
        },
        tokens={kind: make_tokens(rows, generator, tokens) for kind in ("chosen", "rejected")},
        first="change",
        about="One row a preference pair.",
    )


def make_pulled_rows():
    """Three responses, the second of which has tokens with pulls: one that cannot be told from 0, and one NaN."""
    pulls = [250.0, -80.0, 30.0, 0.01, 0.0, NAN, 12.6]
    tokens = [" sorry", " I", "\n", " cannot", PLANTED[0], " x", " end"]
    return RowTable(
        name="pulled",
        title="Responses",
        ids=["g#0", "g#1", "g#2"],
        columns=[RowColumn("rate", "rate", [1.0, 2.0, 3.0], "number")],
        texts={"response": ["a", "b", "c"]},
        tokens={"response": PulledTokens([0, 0, 7, 7], tokens, pulls)},
        first="rate",
    )


def make_planted_rows():
    """A table whose ids, titles, texts and tokens are planted ones, besides long, right-to-left and missing ones."""
    texts = [*PLANTED, "x" * 100_000, "שלום hello עולם", "family 👨‍👩‍👧 and 🎉", "one\n\ttwo  three", "", None]
    ids = [
        *(f"{n}:{text}" for n, text in enumerate(PLANTED)),
        "long",
        "right to left/%&=#?",
        "emoji 👨‍👩‍👧",
        "lines",
        "e",
        "n",
    ]
    count = len(ids)
    spans = Tokens(
        offsets=[0, *([2] * (count - 1)), 3],
        tokens=[PLANTED[0], "\n", " end"],
        before=[-1.0, -2.0, NAN],
        after=[-3.5, -1.0, -1.0],
        gained=[[(PLANTED[1], 0.25, 0.5), (PLANTED[3], 1e-9, 0.1)], [], [(" x", NAN, 0.5)]],
    )
    return RowTable(
        name="planted",
        title=f"Planted {PLANTED[1]}",
        ids=ids,
        columns=[
            RowColumn("value", f"value {PLANTED[0]}", [*map(float, range(count - 1)), NAN], "number"),
            RowColumn("label", f"label {PLANTED[3]}", texts, "text"),
        ],
        texts={f"prompt {PLANTED[2]}": texts, "chosen": texts[::-1]},
        tokens={"chosen": spans},
        first="value",
        about=f"Rows {PLANTED[1]}",
    )


def make_check(state, name="share_displaced", section="fell"):
    return Check(name, f"run {PLANTED[0]}", state, f"{state} of {PLANTED[3]}", 0.4, 0.3, 0.5, 9, 0.2, "above", section)


def make_page(rows=320):
    """A page with two runs, every state of a check, planted texts everywhere, and two tables of rows."""
    figure = make_bars()
    table = pd.DataFrame({"measure": ["share", PLANTED[3]], "value": [0.123456, NAN], "pairs": [123456, 7]})
    question = f"Did it fall? {PLANTED[1]}"
    sections = [
        Section(
            "fell",
            question,
            f"run {PLANTED[0]}",
            [f"It fell {PLANTED[2]}."],
            [figure],
            {f"T {PLANTED[0]}": table},
            "pairs",
        ),
        Section("fell-b", question, "run-b", ["It did not."], [figure], {"Nothing": table[:0]}),
        Section("apart", "Is it real?", "run-b", ["Yes."], [], {"Flags": pd.DataFrame({"at": [1], "is": [True]})}),
    ]
    states = ("ok", "not judged", "WARN", "unclear", "WARN")
    asked = Provenance(
        "run-b", f"probing score --model {PLANTED[0]}", {"model": PLANTED[3], "sha": "0" * 64}, "/runs/b"
    )
    return Page(
        title=f"A report {PLANTED[1]}",
        checks=[make_check(state, f"check-{n}") for n, state in enumerate(states)],
        sections=sections,
        rows=[make_rows(rows, 60, 5), make_planted_rows()],
        runs=[asked],
        remarks=[f"The plots were left out {PLANTED[1]}."],
    )
