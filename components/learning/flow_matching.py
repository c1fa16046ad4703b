"""Conditional flow matching (METHOD section 2, equations 1 and 2) and SD3's distribution of t.

Shape suffixes: B batch, C channels, H W height and width of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowSample:
    """A point on the straight path from data to noise.

    Attributes:
        x_t_BCHW: (1 - t) x_0 + t x_1.
        t_B: in [0, 1]; 0 is data, 1 is noise.
        target_BCHW: the velocity dx_t/dt = x_1 - x_0.
    """

    x_t_BCHW: Tensor
    t_B: Tensor
    target_BCHW: Tensor


def interpolate(x_0_BCHW: Tensor, x_1_BCHW: Tensor, t_B: Tensor) -> FlowSample:
    """The path's point at t, with its velocity."""
    t_B111 = t_B.reshape(-1, 1, 1, 1)
    return FlowSample((1 - t_B111) * x_0_BCHW + t_B111 * x_1_BCHW, t_B, x_1_BCHW - x_0_BCHW)


def shift_times(t_B: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t): the scheduler's timestep shift, which moves t towards noise for s > 1."""
    return shift * t_B / (1 + (shift - 1) * t_B)


def sample_times(
    count: int, *, generator: torch.Generator, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Tensor:
    """t in (0, 1), logit-normal, then shifted as the scheduler shifts.

    SD3's recipe. diffusers' scripts index the scheduler's 1000 shifted sigmas with it; this is the same distribution
    without the rounding (and there a positive mean means less noise, here more, as in the SD3 paper).
    """
    return shift_times(torch.sigmoid(mean + std * torch.randn(count, generator=generator)), shift)
