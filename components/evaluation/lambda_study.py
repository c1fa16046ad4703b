"""The course of lambda* over training, and what it goes along with.

Histories are tables with a row per method, concept, seed and step, and the columns that training logs
(`lambda_star/mean`, `guidance/cosine`, `guidance/norm`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

LAMBDA, COSINE, NORM = "lambda_star/mean", "guidance/cosine", "guidance/norm"
PROMPT_LAMBDA, PROMPT_COSINE = "lambda_star/prompts", "guidance/prompt_cosine"
"""By category of prompts, see `components.benchmark.prompt_guidance`."""
_RUN = ["method", "concept", "seed"]
_SHARE = 0.1
"""Share of the steps at either end that "start" and "end" go over."""


def join_histories(
    histories: Iterable[tuple[str, str, int, Sequence[Mapping[str, float]]]],
) -> pd.DataFrame:
    """One table of (method, concept, seed, rows of `history.jsonl`)."""
    tables = [
        pd.DataFrame([dict(row) for row in rows]).assign(method=method, concept=concept, seed=seed)
        for method, concept, seed, rows in histories
        if rows
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*_RUN, "step"])


def lambda_course(history: pd.DataFrame) -> pd.DataFrame:
    """What lambda* did in each run that logged it.

    Returns:
        One row per method, concept and seed: `start` and `end` (mean over the first and last tenth of the steps),
        `largest`, `settled_at` (the step from which its mean over a tenth of the run stays within a tenth of `end`'s
        size), `below_zero` (share of steps), `unrest` (standard deviation over the second half, by the size of `end`),
        `cosine_start`, `cosine_end`, and its correlation with the guidance cosine over the steps: `pearson`,
        `spearman` (NaN where either never changes).
    """
    rows: list[dict[str, Any]] = []
    if LAMBDA not in history:
        return pd.DataFrame(columns=[*_RUN, "start", "end"])
    for run, part in history.groupby(_RUN, sort=False):
        course = part.sort_values("step")
        course = course[np.isfinite(course[LAMBDA].astype(float))]
        if course.empty:
            continue
        steps, values = (course[name].to_numpy(dtype=np.float64) for name in ("step", LAMBDA))
        tail = max(1, round(_SHARE * len(values)))
        end = float(values[-tail:].mean())
        late = values[len(values) // 2 :]
        row = {
            **dict(zip(_RUN, run, strict=True)),
            "steps": int(steps[-1]),
            "start": float(values[:tail].mean()),
            "end": end,
            "largest": float(values.max()),
            "settled_at": _settled(steps, values, tail, end),
            "below_zero": float((values < 0).mean()),
            "unrest": float(late.std() / abs(end)) if end else math.nan,
        }
        if COSINE in course:
            cosine = course[COSINE].to_numpy(dtype=np.float64)
            row |= {"cosine_start": float(np.nanmean(cosine[:tail])), "cosine_end": float(np.nanmean(cosine[-tail:]))}
            row["pearson"], row["spearman"] = _correlations(values, cosine)
        rows.append(row)
    return pd.DataFrame(rows)


def _settled(steps: NDArray[np.float64], values: NDArray[np.float64], window: int, end: float) -> float:
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    away = np.flatnonzero(np.abs(means - end) > _SHARE * abs(end))
    first = 0 if not len(away) else int(away[-1]) + 1
    return float(steps[min(first, len(steps) - 1)])


def _correlations(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan
    return float(stats.pearsonr(first, second)[0]), float(stats.spearmanr(first, second)[0])


def correlation_with(course: pd.DataFrame, cells: pd.DataFrame, metric: str, column: str = "end") -> dict[str, float]:
    """Spearman's rank correlation, over runs, of what lambda* did and a metric of what came of it.

    Args:
        course: of `lambda_course`.
        cells: one cell per method, concept and seed (`cells.at_budget`).
        column: a column of `course`.

    Returns:
        `runs`, `spearman`, `p` (NaN with fewer than three runs).
    """
    joined = course.merge(cells[[*_RUN, metric]], on=_RUN).dropna(subset=[column, metric])
    if len(joined) < 3 or joined[column].nunique() < 2 or joined[metric].nunique() < 2:
        return {"runs": float(len(joined)), "spearman": math.nan, "p": math.nan}
    result = stats.spearmanr(joined[column], joined[metric])
    return {"runs": float(len(joined)), "spearman": float(result.statistic), "p": float(result.pvalue)}
