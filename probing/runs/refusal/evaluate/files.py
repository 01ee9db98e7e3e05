"""The files of ``probing refusal evaluate``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probing.runs.common.record import write_summary
from probing.runs.refusal.evaluate.config import ANSWERS_FILE, RESULTS_FILE, SUMMARY_FILE
from probing.runs.refusal.evaluate.results import HARMFUL, HARMLESS, Scores
from probing.runs.refusal.evaluate.rows import AFTER, BEFORE
from probing.store.shards import write_frame


def list_answers(scores: Sequence[Scores], theirs: Mapping[str, list[str]]) -> pd.DataFrame:
    """One row a prompt and way of thinking, with the answers before and after side by side."""
    frames = []
    for each in scores:
        rows = each.rows
        columns: dict[str, Any] = {
            "id": [prompt.id for prompt in rows.prompts],
            "thinking": each.thinking,
            "kind": [HARMFUL if harmful else HARMLESS for harmful in rows.harmful],
            "category": [prompt.category for prompt in rows.prompts],
            "prompt": [rows.line_of(row) for row in range(len(rows.prompts))],
        }
        judged = {when: each.judged[when] for when in (BEFORE, AFTER)}
        columns |= {f"answer_{when}": [answer.text for answer in own.answers] for when, own in judged.items()}
        columns |= {f"verdict_{when}": own.verdicts for when, own in judged.items()}
        for when in judged:
            key = f"{when}, thinking {each.thinking}"
            columns |= {f"judge_{when}": theirs[key]} if key in theirs else {}
        columns |= {f"log_odds_{when}": each.tables[when]["log_odds"].to_numpy() for when in judged}
        columns |= {name: each.tables[AFTER][name].to_numpy() for name in ("kl_first", "kl_answer")}
        columns |= {f"ended_{when}": own.ended for when, own in judged.items()}
        columns |= {f"thought_{when}": [answer.thought for answer in own.answers] for when, own in judged.items()}
        frames.append(pd.DataFrame(columns))
    text = {f"thought_{when}": "string" for when in (BEFORE, AFTER)} | {"category": "string"}
    return pd.concat(frames, ignore_index=True).astype(text)


def write_files(
    path: Path,
    answers: pd.DataFrame,
    results: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    write_frame(answers, path / ANSWERS_FILE)
    write_frame(results, path / RESULTS_FILE)
    write_summary(path / SUMMARY_FILE, facts, tables)
    return [ANSWERS_FILE, RESULTS_FILE, SUMMARY_FILE]
