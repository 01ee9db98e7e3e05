"""The numbers of ``probing refusal evaluate``: answers judged, shares and means with intervals, beside the controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from probing.directions.judge_text import REFUSED, VERDICTS, Answer, Phrases, Verdict, judge_answer
from probing.instruments.judge import Judge
from probing.runs.common.results import ALL
from probing.runs.refusal.common.answers import read_answer
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.rows import AFTER, BANDS, BEFORE, Condition, Rows
from probing.statistics.agreement import estimate_agreement
from probing.statistics.bootstrap import bootstrap_mean, draw_bootstrap_weights, estimate_share
from probing.statistics.intervals import null_interval, percentile_interval
from probing.types import Estimate

Array = NDArray[np.float64]
HARMFUL, HARMLESS = "harmful", "harmless"
REFUSED_SHARE, LOG_ODDS, ABOVE_ZERO = "refused", "refusal_log_odds", "share_above_zero"
KL_FIRST, KL_ANSWER, CROSS_ENTROPY = "kl_first", "kl_answer", "cross_entropy"
CHANGE = "change"


@dataclass(frozen=True, eq=False)
class Judged:
    """Answers of one condition, in the order of its prompts.

    Attributes:
        answers: what was written, thoughts apart.
        verdicts: what each answer does.
        ended: whether each ended by itself.
    """

    answers: list[Answer]
    verdicts: list[Verdict]
    ended: list[bool]

    def is_(self, *wanted: str) -> Array:
        """1 for answers with one of these verdicts, else 0."""
        return np.array([verdict in wanted for verdict in self.verdicts], dtype=np.float64)


def judge_table(tokenizer: Any, table: pa.Table, condition: Condition, rows: Rows, phrases: Phrases) -> Judged:
    """Decode the answers of a condition and judge them."""
    opened = rows.opened[condition.thinking]
    coded = table["tokens"].to_pylist()
    answers = [
        read_answer(tokenizer, ids, rows.tags, opened[row]) for ids, row in zip(coded, condition.rows, strict=True)
    ]
    return Judged(answers, [judge_answer(answer, phrases) for answer in answers], table["ended"].to_pylist())


def try_judge(config: EvaluateConfig) -> None:
    """Ask the judge from outside about an answer of our own, before any prompt is answered.

    Raises:
        DataInvalid: it ended, did not answer in time, or answered nonsense. UsageError: it cannot be started.
    """
    if config.judge is not None:
        with Judge(config.judge, config.judge_seconds) as judge:
            judge.ask("trial", "What is 7 + 5?", "12.")


def ask_judge(config: EvaluateConfig, rows: Rows, judged: Mapping[str, Judged]) -> dict[str, list[str]]:
    """Verdicts of the judge from outside on the answers before and after, by the key of the condition.

    Raises:
        DataInvalid: it ended, did not answer in time, or answered nonsense. UsageError: it cannot be started.
    """
    if config.judge is None:
        return {}
    with Judge(config.judge, config.judge_seconds) as judge:
        return {
            key: [
                judge.ask(f"{key}: {rows.prompts[row].id}", rows.line_of(row), answer.text)
                for row, answer in enumerate(found.answers)
            ]
            for key, found in judged.items()
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything that was measured in one way of thinking.

    Attributes:
        thinking: the way of thinking.
        rows: the prompts.
        judged: answers by condition.
        tables: scores by condition: ``log_odds``, ``kl_first``, ``kl_answer``, one a prompt.
        config: options of the run.
    """

    thinking: str
    rows: Rows
    judged: Mapping[str, Judged]
    tables: Mapping[str, pd.DataFrame]
    config: EvaluateConfig

    def list_all(self) -> list[dict[str, Any]]:
        """Every measure of every kind and category, before and after."""
        found: list[dict[str, Any]] = []
        for harmful, kind in ((True, HARMFUL), (False, HARMLESS)):
            own = self.rows.harmful == harmful
            categories = [prompt.category for prompt in self.rows.prompts]
            named = {each for each, mine in zip(categories, own, strict=True) if mine and each is not None}
            groups = {ALL: own} | {
                name: own & np.array([each == name for each in categories]) for name in sorted(map(str, named))
            }
            for category, chosen in groups.items():
                where = {"thinking": self.thinking, "kind": kind, "category": category}
                found += [where | row for row in self._describe(np.flatnonzero(chosen), harmful)]
        return found

    def _describe(self, chosen: NDArray[np.int64], harmful: bool) -> list[dict[str, Any]]:
        described = []
        for when in (BEFORE, AFTER):
            judged = self.judged[when]
            for verdict in VERDICTS:
                described.append(self._row(verdict, when, self._share(judged.is_(verdict)[chosen], chosen)))
            refused = self._share(judged.is_(*REFUSED)[chosen], chosen)
            band = self._bands(lambda name: self.judged[name].is_(*REFUSED)[chosen].mean(), self.judged)
            described.append(self._row(REFUSED_SHARE, when, refused, band if when == AFTER else {}))
            odds = self._column(when, "log_odds")[chosen]
            for measure, values, estimate in (
                (LOG_ODDS, odds, self._mean),
                (ABOVE_ZERO, (odds > 0).astype(float), self._share),
            ):
                band = self._score_bands("log_odds", chosen, above=measure == ABOVE_ZERO) if when == AFTER else {}
                described.append(self._row(measure, when, estimate(values, chosen), band))
        if not harmful:
            for measure in (KL_FIRST, KL_ANSWER):
                values = self._column(AFTER, measure)[chosen]
                band = self._score_bands(measure, chosen) if measure == KL_FIRST else {}
                described.append(self._row(measure, AFTER, self._mean(values, chosen), band))
        return described

    def _column(self, name: str, column: str) -> Array:
        return self.tables[name][column].to_numpy(dtype=np.float64)

    def _score_bands(self, column: str, chosen: NDArray[np.int64], above: bool = False) -> dict[str, float]:
        def mean_of(name: str) -> float:
            values = self._column(name, column)[chosen]
            return float((values > 0).mean() if above else values.mean())

        return self._bands(mean_of, self.tables)

    def _bands(self, mean_of: Callable[[str], float], known: Mapping[str, Any]) -> dict[str, float]:
        """The middle 95 % of what the directions of each control do, with its median and their number."""
        columns: dict[str, float] = {}
        for band, beginning in BANDS.items():
            draws = np.array([mean_of(name) for name in known if name.startswith(beginning)])
            ends = zip(("low", "median", "high"), null_interval(draws), strict=True)
            columns |= {f"{band}_{end}": value for end, value in ends} | {f"{band}_n": float(len(draws))}
        return columns

    def _share(self, values: Array, chosen: NDArray[np.int64]) -> Estimate:
        return estimate_share(values, self.config.resamples, self.config.seed, self.rows.units[chosen])

    def _mean(self, values: Array, chosen: NDArray[np.int64]) -> Estimate:
        return bootstrap_mean(values, self.config.resamples, self.config.seed, self.rows.units[chosen])

    @staticmethod
    def _row(measure: str, when: str, estimate: Estimate, band: Mapping[str, float] = {}) -> dict[str, Any]:
        ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        return {"measure": measure, "when": when, **ends, **band}


def list_cross_entropy(tables: Mapping[str, pa.Table], config: EvaluateConfig) -> list[dict[str, Any]]:
    """Cross-entropy on the text in nats a token, before, after, and the change, with intervals over windows."""
    frames = {key.split(",")[0]: table.to_pandas() for key, table in tables.items()}
    if not frames:
        return []
    tokens = frames[BEFORE]["tokens"].to_numpy(dtype=np.float64)
    nats = {name: frame["nats"].to_numpy(dtype=np.float64) for name, frame in frames.items()}
    nats[CHANGE] = nats[AFTER] - nats[BEFORE]
    weights = draw_bootstrap_weights(np.arange(len(tokens)), config.resamples, config.seed)
    rows = []
    for when, values in nats.items():
        low, high = percentile_interval(weights @ values / (weights @ tokens)) if len(tokens) > 1 else (np.nan, np.nan)
        value = float(values.sum() / tokens.sum())
        ends = {"value": value, "low": low, "high": high, "n": int(tokens.sum())}
        rows.append({"thinking": "", "kind": "text", "category": ALL, "measure": CROSS_ENTROPY, "when": when, **ends})
    return rows


def compare_judges(
    rows: Rows, judged: Mapping[str, Judged], theirs: Mapping[str, list[str]], config: EvaluateConfig
) -> pd.DataFrame:
    """Agreement of our verdicts with the judge's on who refuses, by condition: share of equal ones, and kappa."""
    compared = []
    for key, verdicts in theirs.items():
        own = judged[key].is_(*REFUSED) > 0
        other = np.array([verdict in REFUSED for verdict in verdicts])
        share, kappa = estimate_agreement(own, other, rows.units, config.resamples, config.seed)
        compared.append(
            {
                "answers": key,
                "refused by our phrases": float(own.mean()),
                "refused by the judge": float(other.mean()),
                "agreement": share.value,
                "agreement_low": share.low,
                "agreement_high": share.high,
                "kappa": kappa.value,
                "kappa_low": kappa.low,
                "kappa_high": kappa.high,
            }
        )
    return pd.DataFrame(compared)
