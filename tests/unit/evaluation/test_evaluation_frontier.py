"""Fidelity-preservation frontiers against brute force."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation.frontier import damage_at, frontier, hypervolume

_COORDINATE = st.integers(0, 20).map(lambda value: value / 20)
_POINTS = st.lists(st.tuples(_COORDINATE, _COORDINATE), min_size=1, max_size=8)


@settings(deadline=None)
@given(_POINTS)
def test_the_frontier_is_exactly_the_points_that_none_beats(points: list[tuple[float, float]]) -> None:
    unbeaten = {
        point
        for point in points
        if not any(other != point and other[0] >= point[0] and other[1] <= point[1] for other in points)
    }
    assert set(frontier(points)) == unbeaten
    assert frontier(points) == sorted(unbeaten)


@settings(deadline=None)
@given(_POINTS)
def test_hypervolume_equals_the_count_of_dominated_cells(points: list[tuple[float, float]]) -> None:
    centres = (np.arange(20) + 0.5) / 20
    dominated = sum(any(fidelity >= x and damage <= y for fidelity, damage in points) for x in centres for y in centres)
    assert math.isclose(hypervolume(points, reference=(0.0, 1.0)), dominated / 400, abs_tol=1e-9)


def test_damage_at_a_fidelity_is_linear_between_points_and_infinite_beyond() -> None:
    points = [(0.2, 0.1), (0.6, 0.3), (0.5, 0.9)]
    assert math.isclose(damage_at(points, 0.4), 0.2)
    assert damage_at(points, 0.1) == 0.1
    assert damage_at(points, 0.61) == math.inf
    assert damage_at([], 0.1) == math.inf
