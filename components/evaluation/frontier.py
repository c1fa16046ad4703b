"""Fidelity-preservation curves: one point per method proves nothing, a LoRA stopped early preserves well too.

A curve is a set of points (fidelity, damage) of one method on one concept and seed, over training steps; fidelity is
better high, damage better low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both, by rising fidelity (and so rising damage)."""
    best: list[Point] = []
    for fidelity, damage in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or damage < best[-1][1]:
            best.append((fidelity, damage))
    return best[::-1]


def damage_at(points: Sequence[Point], fidelity: float) -> float:
    """Least damage at which the frontier reaches a fidelity, linear between its points.

    A further point can raise it beside itself: it shows the curve where before a straight line was supposed.

    Returns:
        inf where the curve never reaches it; the damage of the first point where already that exceeds it.
    """
    curve = frontier(points)
    if not curve or fidelity > curve[-1][0]:
        return math.inf
    if fidelity <= curve[0][0]:
        return curve[0][1]
    return float(np.interp(fidelity, [point[0] for point in curve], [point[1] for point in curve]))


def hypervolume(points: Sequence[Point], *, reference: Point) -> float:
    """Area between the frontier's staircase and a reference point of low fidelity and high damage."""
    low, high = reference
    area, floor = 0.0, low
    for fidelity, damage in frontier(points):
        if damage < high and fidelity > floor:
            area += (fidelity - floor) * (high - damage)
            floor = fidelity
    return area
