"""Signed distances to the eight shapes of unit radius: negative inside. Inputs and results (B, H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.95


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.82


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() / 0.72 + y.abs() / 1.08 - 1) * 0.6


def _cross(x: Tensor, y: Tensor) -> Tensor:
    long, wide = 0.98, 0.33
    horizontal = torch.maximum(x.abs() - long, y.abs() - wide)
    vertical = torch.maximum(x.abs() - wide, y.abs() - long)
    return torch.minimum(horizontal, vertical)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.68).abs() - 0.28


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Exact distance to a simple polygon, sign by the even-odd rule."""
    distance = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey != 0:
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * ex / ey)
    return torch.where(inside, -distance, distance)


def _regular(count: int, radii: tuple[float, ...], turn: float = -math.pi / 2) -> list[tuple[float, float]]:
    total = count * len(radii)
    return [
        (
            radii[index % len(radii)] * math.cos(turn + 2 * math.pi * index / total),
            radii[index % len(radii)] * math.sin(turn + 2 * math.pi * index / total),
        )
        for index in range(total)
    ]


_TRIANGLE = [(x, y + 0.2) for x, y in _regular(3, (1.2,))]
_STAR = _regular(5, (1.15, 0.48))
_HEART = [
    (
        16 * math.sin(turn) ** 3 / 17,
        -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)) / 17 - 0.1,
    )
    for turn in (2 * math.pi * step / 20 for step in range(20))
]

SIGNED_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": lambda x, y: _polygon(x, y, _TRIANGLE),
    "star": lambda x, y: _polygon(x, y, _STAR),
    "heart": lambda x, y: _polygon(x, y, _HEART),
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}
