"""From scenes to pixels: anti-aliased by signed distances, batched over scenes, a pure function of the scenes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.world.scene import CENTRES, RADII, Scene, SceneObject
from components.world.shapes import SIGNED_DISTANCE
from components.world.textures import TEXTURE
from components.world.vocabulary import Style

SIDE = 64
MAXIMUM_OBJECTS = 2


@dataclass(frozen=True)
class Render:
    """Images and what is truly in them.

    Attributes:
        images_BCHW: RGB in [-1, 1].
        masks_BNHW: coverage of each object in [0, 1], object 0 on top; zeros where a scene has fewer.
    """

    images_BCHW: Tensor
    masks_BNHW: Tensor


def _groups(keys: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x.unsqueeze(0), y.unsqueeze(0)


def _edge(value: Tensor, width: Tensor | float) -> Tensor:
    """0 below zero, 1 above, linear over `width` in between: a box filter over one pixel."""
    return (value / width + 0.5).clamp(0, 1)


def _pattern(
    pattern: str, x: Tensor, y: Tensor, distance: Tensor, frequency: Tensor, angle: Tensor, pixel: Tensor
) -> Tensor:
    """Share of the second colour, (B, H, W); x, y in units of the object's radius, `pixel` a pixel's size in them."""
    u = x * torch.cos(angle) + y * torch.sin(angle)
    v = y * torch.cos(angle) - x * torch.sin(angle)
    slope = math.pi * frequency * pixel
    if pattern == "solid":
        return torch.zeros_like(x)
    if pattern == "stripes":
        return _edge(torch.sin(math.pi * frequency * u * 1.5), slope * 1.5)
    if pattern == "checks":
        return _edge(torch.sin(math.pi * frequency * u) * torch.sin(math.pi * frequency * v), slope)
    if pattern == "dots":
        du, dv = (((value * frequency) % 1) - 0.5 for value in (u, v))
        return _edge(0.32 - torch.hypot(du, dv), frequency * pixel)
    if pattern == "gradient":
        return (u * 0.6 + 0.5).clamp(0, 1)
    if pattern == "radial":
        return torch.hypot(x, y).clamp(0, 1)
    if pattern == "rings":
        return _edge(torch.sin(math.pi * frequency * torch.hypot(x, y) * 1.6), slope * 1.6)
    if pattern == "halves":
        return _edge(u, pixel)
    if pattern == "outline":
        return _edge(distance + 0.24, pixel)
    wave = u + 0.25 * (((v * frequency) % 1) - 0.5).abs() * 4 / 2
    return _edge(torch.sin(math.pi * frequency * wave * 1.5), slope * 1.5)


def _window(objects: Sequence[SceneObject], side: int) -> tuple[Tensor, Tensor]:
    """Pixel rows (B, K, 1) and columns (B, 1, K) of a window around each object that holds all of it."""
    size = min(side, math.ceil(side * 0.625))
    starts = torch.tensor([[CENTRES[item.position][axis] + item.offset[axis] for axis in (0, 1)] for item in objects])
    starts = (((starts + 1) / 2 * side - size / 2).round().long()).clamp(0, side - size)
    steps = torch.arange(size)
    return (starts[:, 1:] + steps).unsqueeze(2), (starts[:, :1] + steps).unsqueeze(1)


def _draw_objects(objects: Sequence[SceneObject], rows: Tensor, columns: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Colours (B, 3, K, K) and coverage (B, K, K) of one object for each scene, on the pixels of its window."""
    x, y = ((axis + 0.5) / side * 2 - 1 for axis in (columns, rows))
    radius = _column([RADII[item.size] for item in objects])
    turn = _column([item.angle for item in objects])
    dx = (x - _column([CENTRES[item.position][0] + item.offset[0] for item in objects])) / radius
    dy = (y - _column([CENTRES[item.position][1] + item.offset[1] for item in objects])) / radius
    local_x = dx * torch.cos(turn) + dy * torch.sin(turn)
    local_y = dy * torch.cos(turn) - dx * torch.sin(turn)
    pixel = (2 / side) / radius
    distance = torch.empty_like(local_x)
    for shape, where in _groups(item.shape for item in objects).items():
        distance[where] = SIGNED_DISTANCE[str(shape)](local_x[where], local_y[where])
    share = torch.empty_like(local_x)
    frequency = _column([item.look.frequency for item in objects])
    angle = _column([item.look.angle for item in objects])
    for pattern, where in _groups(item.look.pattern for item in objects).items():
        share[where] = _pattern(
            str(pattern), local_x[where], local_y[where], distance[where], frequency[where], angle[where], pixel[where]
        )
    first, second = (torch.tensor([item.look.colours[which] for item in objects]).view(-1, 3, 1, 1) for which in (0, 1))
    return first + (second - first) * share.unsqueeze(1), _edge(-distance, pixel)


def apply_style(images_BCHW: Tensor, style: Style) -> Tensor:
    """One style over images in [0, 1]."""
    side = images_BCHW.shape[-1]
    x, y = _grid(side)
    if style.overlay == "pixels":
        small = torch.nn.functional.avg_pool2d(images_BCHW, 4)
        images_BCHW = torch.nn.functional.interpolate(small, scale_factor=4, mode="nearest")
    luminance = (images_BCHW * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    dark, light = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (style.dark, style.light))
    toned = dark + (light - dark) * luminance
    result = images_BCHW + (toned - images_BCHW) * style.strength
    if style.overlay == "scanlines":
        result = result * (0.8 + 0.2 * torch.sin(math.pi * 16 * y)).unsqueeze(1)
    elif style.overlay == "halftone":
        dots = torch.sin(math.pi * 10 * x) * torch.sin(math.pi * 10 * y)
        result = (result + 0.14 * dots.unsqueeze(1)).clamp(0, 1)
    elif style.overlay == "vignette":
        result = result * (1 - 0.75 * ((x**2 + y**2) / 2)).unsqueeze(1)
    elif style.overlay == "frame":
        border = _edge(torch.maximum(x.abs(), y.abs()) - 0.88, 2 / side).unsqueeze(1)
        result = result * (1 - border) + light * border
    return result


def render(scenes: Sequence[Scene], side: int = SIDE) -> Render:
    """Images and object masks of scenes."""
    x, y = _grid(side)
    images = torch.empty(len(scenes), 3, side, side)
    for background, where in _groups(scene.background for scene in scenes).items():
        u, v = (_column([scenes[index].phase[axis] for index in where]) for axis in (0, 1))
        images[where] = TEXTURE[str(background)](x, y, u, v).clamp(0, 1)
    masks = torch.zeros(len(scenes), MAXIMUM_OBJECTS, side, side)
    for number in reversed(range(MAXIMUM_OBJECTS)):
        where = [index for index, scene in enumerate(scenes) if len(scene.objects) > number]
        if not where:
            continue
        objects = [scenes[index].objects[number] for index in where]
        rows, columns = _window(objects, side)
        colours, coverage = _draw_objects(objects, rows, columns, side)
        scene_index = torch.tensor(where).view(-1, 1, 1)
        alpha = coverage.unsqueeze(3)
        under = images[scene_index, :, rows, columns]  # indexing puts the channels last
        images[scene_index, :, rows, columns] = under + (colours.permute(0, 2, 3, 1) - under) * alpha
        under = masks[scene_index, :, rows, columns]
        masks[scene_index, :, rows, columns] = under * (1 - alpha)
        masks[scene_index, number, rows, columns] = coverage
    for style, where in _groups(scene.style for scene in scenes).items():
        if isinstance(style, Style):
            images[where] = apply_style(images[where], style)
    return Render(images.clamp(0, 1) * 2 - 1, masks)
