"""Pictures as people would not want them: each damaged in one of several ways that generators are known for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

_BLOCK = 8


def _noise(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    noise = torch.tensor(rng.normal(size=tuple(image_CHW.shape)), dtype=image_CHW.dtype)
    return image_CHW + float(rng.uniform(0.25, 0.6)) * noise


def _blur(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    reach = int(rng.integers(2, 5))
    return avg_pool2d(image_CHW[None], 2 * reach + 1, 1, reach, count_include_pad=False)[0]


def _coarse(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    factor = int(rng.choice([4, 8]))
    return interpolate(avg_pool2d(image_CHW[None], factor), scale_factor=float(factor))[0]


def _colours(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    grey = image_CHW.mean(0, keepdim=True)
    shift = torch.tensor(rng.uniform(-0.5, 0.5, size=(3, 1, 1)), dtype=image_CHW.dtype)
    return grey + float(rng.uniform(0.0, 0.4)) * (image_CHW - grey) + shift


def _shuffled(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Some blocks of the picture change places: shapes come apart."""
    result = image_CHW.clone()
    across = image_CHW.shape[-1] // _BLOCK
    chosen = rng.choice(across * across, size=int(rng.integers(8, 24)), replace=False)
    for target, source in zip(chosen, np.roll(chosen, 1), strict=True):
        (a, b), (c, d) = (divmod(int(place), across) for place in (target, source))
        rows, columns = slice(_BLOCK * a, _BLOCK * (a + 1)), slice(_BLOCK * b, _BLOCK * (b + 1))
        other = image_CHW[:, _BLOCK * c : _BLOCK * (c + 1), _BLOCK * d : _BLOCK * (d + 1)]
        result[:, rows, columns] = other
    return result


def _warped(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Waves run through the picture."""
    side = image_CHW.shape[-1]
    at = torch.arange(side, dtype=torch.float32)
    wave = float(rng.uniform(2.5, 5)) * torch.sin(at / side * float(rng.uniform(2, 5)) * 2 * torch.pi)
    columns = (at[None, :] + wave[:, None]).round().long().clamp(0, side - 1)
    return image_CHW.gather(2, columns.expand(image_CHW.shape[0], -1, -1))


CORRUPTIONS: tuple[Callable[[Tensor, np.random.Generator], Tensor], ...] = (
    _noise,
    _blur,
    _coarse,
    _colours,
    _shuffled,
    _warped,
)


def corrupted(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture (square, in [-1, 1]) damaged in one way."""
    kinds = rng.integers(len(CORRUPTIONS), size=len(images_BCHW))
    damaged = [CORRUPTIONS[kind](image, rng) for kind, image in zip(kinds, images_BCHW, strict=True)]
    return torch.stack(damaged).clamp(-1, 1)
