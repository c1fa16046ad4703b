"""Euler sampling of the flow with classifier-free guidance, as diffusers' SD3 pipeline does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, one sample per seed, drawn on the CPU: the same on every device and in every batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def euler(scheduler_config: Any, x_BCHW: Tensor, velocity: Velocity, *, steps: int, guidance_scale: float) -> Tensor:
    """Latents from noise.

    Args:
        scheduler_config: configuration of a FlowMatchEulerDiscreteScheduler (its shift is that of training).
        x_BCHW: noise.
        velocity: (x, t) -> velocity; with guidance_scale > 1 it is called with a batch of 2B: first the negative
            prompts' half, then the prompts'.
        guidance_scale: 1 or less: no guidance, one pass per step.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config)
    scheduler.set_timesteps(steps, device=x_BCHW.device)
    guided = guidance_scale > 1
    for timestep in scheduler.timesteps:
        t_B = (timestep / scheduler.config.num_train_timesteps).expand(len(x_BCHW) * (2 if guided else 1))
        v_BCHW = velocity(torch.cat([x_BCHW, x_BCHW]) if guided else x_BCHW, t_B)
        if guided:
            v_null_BCHW, v_text_BCHW = v_BCHW.chunk(2)
            v_BCHW = v_null_BCHW + guidance_scale * (v_text_BCHW - v_null_BCHW)
        x_BCHW = scheduler.step(v_BCHW, timestep, x_BCHW, return_dict=False)[0]
    return x_BCHW
