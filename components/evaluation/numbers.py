"""Figures as the texts of a report."""

from __future__ import annotations

import math

import pandas as pd

from components.evaluation.metrics import METRICS


def figure(value: float, digits: int = 3) -> str:
    """A figure to `digits` significant digits; empty where there is none."""
    if not math.isfinite(value):
        return ""
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


def spread(values: pd.Series) -> str:
    """Mean ± standard deviation of figures per seed."""
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    return figure(mean) + (f" ± {figure(deviation, 2)}" if math.isfinite(deviation) else "")


def label(metric: str) -> str:
    if metric not in METRICS:
        return metric
    return METRICS[metric].label + (", other prompts" if "/prior_" in metric else "")
