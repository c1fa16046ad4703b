"""Line and scatter charts as inline SVG: no script, no file beside the page; the page's CSS gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 26
_POINTS = 240
_KEY_ROW = 18
PALETTE = ("#3350c4", "#0b7f86", "#c2410c", "#7c3aed", "#15803d", "#be185d", "#a16207", "#0369a1", "#64748b", "#1c2330")
"""Colours of series on a light page, in the order of their classes s0, s1, ..."""
COLOURS = len(PALETTE)

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


@dataclass(frozen=True)
class Frame:
    """A chart's plane: values to pixels, and the grid behind them.

    Attributes:
        x, y: the ranges shown.
        width, height: of the whole picture, pixels.
        right: margin on the right, pixels.
        bottom: margin below, pixels.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = _WIDTH
    height: int = _HEIGHT
    right: int = _RIGHT
    bottom: int = _BOTTOM

    def place(self, x: Values, y: Values) -> list[tuple[float, float]]:
        """Pixels of points; what is out of the range of y stands on the frame's edge."""
        low, high = self.y
        span = (self.x[1] - self.x[0]) or 1.0
        across = _LEFT + (x - self.x[0]) / span * (self.width - _LEFT - self.right)
        down = _TOP + (high - np.clip(y, low, high)) / (high - low) * (self.height - _TOP - self.bottom)
        return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across, down, strict=True)]

    def opened(self, title: str) -> list[str]:
        """The start of the SVG, with grid and ticks."""
        right, floor = self.width - self.right, self.height - self.bottom
        head = f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img"><title>{escape(title)}</title>'
        parts = [head]
        for tick in ticks(*self.y):
            ((_, down),) = self.place(np.array([self.x[0]]), np.array([tick]))
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{down:g}" y2="{down:g}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{down + 3.5:g}" text-anchor="end">{tick:.4g}</text>')
        for tick in ticks(*self.x):
            ((across, _),) = self.place(np.array([tick]), np.array([self.y[0]]))
            parts.append(f'<text class="tick" x="{across:g}" y="{floor + 16}" text-anchor="middle">{tick:.4g}</text>')
        return parts


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _path(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:g},{b:g}" for a, b in pairs)


def line_chart(
    title: str, steps: Sequence[float], series: Sequence[Series], band: tuple[Values, Values] | None = None
) -> Markup:
    """A chart of a metric over training steps: every value faint, their moving mean strong.

    The value axis shows the 1st to 99th percentile, so that one outlier does not flatten the rest.

    Args:
        band: lowest and highest value per step (e.g. over a batch), shaded.
    """
    x = np.asarray(steps, dtype=np.float64)
    shown = [(number, *thin(x, one.values)) for number, one in enumerate(series)]
    shown = [one for one in shown if one[1].size]
    if not shown:
        return Markup('<p class="empty">{}: nothing was logged.</p>').format(title)
    edges = [thin(x, edge) for edge in band] if band is not None else []
    everything = np.concatenate([values for _, _, values in shown] + [values for _, values in edges])
    low, high = (float(value) for value in np.percentile(everything, [1, 99]))
    frame = Frame((float(x.min()), float(x.max())), _padded(low, high))
    parts = frame.opened(title)
    if edges:
        (at_low, lows), (at_high, highs) = edges
        outline = frame.place(at_high, highs) + frame.place(at_low, lows)[::-1]
        parts.append(f'<polygon class="band" points="{_path(outline)}"/>')
    for number, at, values in shown:
        colour = _line_class(number)
        parts.append(f'<polyline class="raw {colour}" points="{_path(frame.place(at, values))}"/>')
        parts.append(f'<polyline class="line {colour}" points="{_path(frame.place(at, smooth(values)))}"/>')
    parts.append("</svg>")
    return Markup("".join(parts))  # every text in it is escaped or a number


def _line_class(number: int) -> str:
    """Class of a series' lines; dashed once the colours are used up."""
    return f"s{number % COLOURS}" + (" again" if number >= COLOURS else "")


def _mark(number: int, across: float, down: float, size: float, faint: bool = False) -> str:
    """A point: a disc, or a square once the colours are used up."""
    kind = f"dot{' faint' if faint else ''} d{number % COLOURS}"
    if number < COLOURS:
        return f'<circle class="{kind}" cx="{across:g}" cy="{down:g}" r="{size:g}"/>'
    corner = f'x="{across - size:g}" y="{down - size:g}"'
    return f'<rect class="{kind}" {corner} width="{2 * size:g}" height="{2 * size:g}"/>'


@dataclass(frozen=True)
class Cloud:
    """Points of a scatter chart.

    Attributes:
        name: in the legend; none if empty.
        colour: number of its colour, the same for clouds that belong together.
        joined: the points are a path, in their order, and drawn large.
    """

    name: str
    x: Values
    y: Values
    colour: int
    joined: bool = True


def scatter_chart(title: str, clouds: Sequence[Cloud], x_label: str, y_label: str) -> Markup:
    """Points of several groups in one plane, with a legend; points that are not finite are left out."""
    finite = []
    for cloud in clouds:
        good = np.isfinite(cloud.x) & np.isfinite(cloud.y)
        if good.any():
            finite.append(Cloud(cloud.name, cloud.x[good], cloud.y[good], cloud.colour, cloud.joined))
    if not finite:
        return Markup('<p class="empty">{}: nothing was measured.</p>').format(title)
    x, y = (np.concatenate([getattr(cloud, axis) for cloud in finite]) for axis in ("x", "y"))
    named = {cloud.name: cloud.colour for cloud in finite if cloud.name}
    frame = Frame(
        _padded(float(x.min()), float(x.max())),
        _padded(float(y.min()), float(y.max())),
        width=680,
        height=max(380, 40 + _KEY_ROW * len(named)),
        right=190,
        bottom=46,
    )
    parts = frame.opened(title)
    parts.append(f'<text class="label" x="{_LEFT}" y="{frame.height - 8}">{escape(x_label)}</text>')
    turned = f"translate(10 {(frame.height - frame.bottom) // 2}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
    for cloud in finite:
        places = frame.place(cloud.x, cloud.y)
        if cloud.joined and len(places) > 1:
            parts.append(f'<polyline class="line {_line_class(cloud.colour)}" points="{_path(places)}"/>')
        parts += [_mark(cloud.colour, a, b, 4.0 if cloud.joined else 2.0, faint=not cloud.joined) for a, b in places]
    for row, (name, colour) in enumerate(named.items()):
        left, down = frame.width - frame.right + 16, _TOP + 8 + _KEY_ROW * row
        parts.append(_mark(colour, left, down, 4.0))
        parts.append(f'<text class="key" x="{left + 10}" y="{down + 4}">{escape(name)}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))  # every text in it is escaped or a number


def standalone(chart: Markup) -> str:
    """A chart as an SVG file of its own, on white: the page's classes written out."""
    colours = "".join(
        f".s{number}{{stroke:{colour}}}.d{number}{{fill:{colour}}}" for number, colour in enumerate(PALETTE)
    )
    style = (
        "<style>svg{background:#fff;font-family:sans-serif}polyline{fill:none;stroke-linejoin:round}"
        ".grid{stroke:#e2e6ec}.tick,.label{fill:#5b6577;font-size:11px}.key{fill:#1c2330;font-size:12px}"
        ".raw{opacity:.3}.line{stroke-width:2}.again{stroke-dasharray:6 4}"
        ".faint{opacity:.35}.band{fill:#3350c4;opacity:.14}" + colours + "</style>"
    )
    opened = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return opened.replace("</title>", f"</title>{style}", 1) + "\n"
