"""Line charts as inline SVG: no script, no file beside the page; colours come from the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 26
_POINTS = 240

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """A line of a chart: one value per step, NaN where there is none."""

    name: str
    values: Values


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def thin(steps: Values, values: Values, points: int = _POINTS) -> tuple[Values, Values]:
    """Means over equal runs of steps, at most `points` of them; runs without a finite value are left out."""
    runs = np.array_split(np.arange(len(steps)), min(points, max(len(steps), 1)))
    kept = [(steps[run].mean(), values[run][np.isfinite(values[run])]) for run in runs if run.size]
    pairs = [(step, found.mean()) for step, found in kept if found.size]
    result = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return result[:, 0], result[:, 1]


def smooth(values: Values, share: float = 0.08) -> Values:
    """Centred moving mean over a share of the points, shortened at the ends."""
    reach = max(1, round(len(values) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    smoothed: Values = (total[high] - total[low]) / (high - low)
    return smoothed


def line_chart(
    title: str, steps: Sequence[float], series: Sequence[Series], band: tuple[Values, Values] | None = None
) -> Markup:
    """A chart of a metric over training steps: every value faint, their moving mean strong.

    The value axis shows the 1st to 99th percentile, so that one outlier does not flatten the rest.

    Args:
        band: lowest and highest value per step (e.g. over a batch), shaded.
    """
    x = np.asarray(steps, dtype=np.float64)
    shown = [(one.name, *thin(x, one.values)) for one in series]
    shown = [one for one in shown if one[1].size]
    if not shown:
        return Markup('<p class="empty">{}: nothing was logged.</p>').format(title)
    edges = [thin(x, edge) for edge in band] if band is not None else []
    everything = np.concatenate([values for _, _, values in shown] + [values for _, values in edges])
    low, high = (float(value) for value in np.percentile(everything, [1, 99]))
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - pad, high + pad
    first, last = float(x.min()), float(x.max())
    span = (last - first) or 1.0

    def place(at: Values, values: Values) -> list[tuple[float, float]]:
        across = _LEFT + (at - first) / span * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (high - np.clip(values, low, high)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across, down, strict=True)]

    def points(pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{a:g},{b:g}" for a, b in pairs)

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in ticks(low, high):
        (_, down), *_ = place(np.array([first]), np.array([tick]))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:g}" y2="{down:g}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{down + 3.5:g}" text-anchor="end">{tick:.4g}</text>')
    for tick in ticks(first, last):
        (across, _), *_ = place(np.array([tick]), np.array([low]))
        parts.append(
            f'<text class="tick" x="{across:g}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    if edges:
        (at_low, lows), (at_high, highs) = edges
        outline = place(at_high, highs) + place(at_low, lows)[::-1]
        parts.append(f'<polygon class="band" points="{points(outline)}"/>')
    for number, (_, at, values) in enumerate(shown):
        parts.append(f'<polyline class="raw s{number}" points="{points(place(at, values))}"/>')
        parts.append(f'<polyline class="line s{number}" points="{points(place(at, smooth(values)))}"/>')
    parts.append("</svg>")
    return Markup("".join(parts))  # every text in it is escaped or a number
