"""The eight backgrounds. x, y (1, H, W) in [-1, 1]; u, v (B, 1, 1) phases in [0, 1); results (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_TURN = 2 * math.pi


def _mix(first: tuple[float, ...], second: tuple[float, ...], share: Tensor) -> Tensor:
    a, b = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (first, second))
    return a + (b - a) * share.unsqueeze(1)


def _smooth(value: Tensor, edge: float) -> Tensor:
    return torch.sigmoid(value / edge)


def _brick(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    row_position = y * 4 + v * 2
    row = torch.floor(row_position)
    column_position = x * 2.5 + u * 2 + 0.5 * (row % 2)
    inside_row, inside_column = row_position - row, column_position - torch.floor(column_position)
    distance = torch.minimum(
        torch.minimum(inside_row, 1 - inside_row) * 0.25, torch.minimum(inside_column, 1 - inside_column) * 0.4
    )
    tone = 0.12 * torch.sin(7 * row + 5 * torch.floor(column_position))
    wall = _mix((0.62, 0.26, 0.18), (0.74, 0.36, 0.26), 0.5 + tone * 3)
    mortar = _smooth(0.028 - distance, 0.008).unsqueeze(1)
    return wall * (1 - mortar) + 0.78 * mortar


def _snow(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    drift = 0.5 + 0.5 * torch.sin(2.2 * x + _TURN * u + 1.3 * torch.sin(2.5 * y + _TURN * v))
    return _mix((0.86, 0.91, 0.97), (0.97, 0.98, 1.0), drift)


def _grass(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    blades = torch.sin(22 * x + 3 * torch.sin(5 * y + _TURN * v) + _TURN * u) * 0.5 + 0.5
    return _mix((0.20, 0.46, 0.13), (0.42, 0.68, 0.22), blades)


def _sand(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    ripples = torch.sin(14 * (y + 0.5 * x) + 1.5 * torch.sin(3 * x + _TURN * u) + _TURN * v) * 0.5 + 0.5
    return _mix((0.84, 0.72, 0.47), (0.93, 0.83, 0.60), ripples)


def _water(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    waves = torch.sin(16 * y + 1.8 * torch.sin(5 * x + _TURN * u) + _TURN * v) * 0.5 + 0.5
    return _mix((0.10, 0.45, 0.62), (0.38, 0.72, 0.82), waves**2)


def _wood(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    grain = torch.sin(9 * x + 2.2 * torch.sin(1.6 * y + _TURN * u) + _TURN * v) * 0.5 + 0.5
    planks = torch.sin(math.pi * (x * 2 + 2 * u)).abs()
    seam = _smooth(0.08 - planks, 0.02).unsqueeze(1)
    return _mix((0.42, 0.26, 0.12), (0.60, 0.40, 0.20), grain) * (1 - 0.5 * seam)


def _stone(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    cells = torch.sin(6 * x + _TURN * u + 1.5 * torch.sin(4 * y)) * torch.sin(
        6 * y + _TURN * v + 1.5 * torch.sin(5 * x)
    )
    cracks = torch.exp(-((cells / 0.16) ** 2))
    return _mix((0.62, 0.62, 0.60), (0.36, 0.36, 0.37), cracks)


def _night(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    sky = (y * 0.5 + 0.5).expand(u.shape[0], -1, -1)
    stars = torch.zeros_like(sky)
    for index in range(7):
        star_x = ((u + 0.618 * index) % 1) * 2 - 1
        star_y = ((v + 0.381 * index) % 1) * 2 - 1
        stars = stars + torch.exp(-((x - star_x) ** 2 + (y - star_y) ** 2) / 0.0016)
    return (_mix((0.04, 0.04, 0.16), (0.16, 0.10, 0.32), sky) + 0.85 * stars.clamp(max=1).unsqueeze(1)).clamp(max=1)


TEXTURE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "brick": _brick,
    "snow": _snow,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "wood": _wood,
    "stone": _stone,
    "night": _night,
}
