"""The objective of pure learning (METHOD section 4, equations 8 to 15).

Shape suffixes: B batch, C channels, H W height and width of the latent. Velocities:
v_complete = v_theta2(x_t | complete), v_orig = v_orig(x_t | base), guidance = R_tar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.learning_settings import LambdaSettings

FLOOR = 1e-12
"""Least mean square of R_tar that counts as guidance: below a root mean square of 1e-6 it is rounding noise."""


@dataclass(frozen=True)
class GuidanceStep:
    """What one step's guidance came to.

    Attributes:
        lambda_star_B: closed-form scale of the guidance (11, 12), one for each sample; no gradient.
        scale_B: the scale that v_pure has: lambda*, or what the settings make of it.
        guidance_BCHW: R_tar (8); no gradient.
        target_BCHW: v_pure (13); carries gradient only through v_orig, if that does.
    """

    lambda_star_B: Tensor
    scale_B: Tensor
    guidance_BCHW: Tensor
    target_BCHW: Tensor


def _flat(v_BCHW: Tensor) -> Tensor:
    """(B, C*H*W) in at least float32."""
    return v_BCHW.reshape(len(v_BCHW), -1).to(torch.promote_types(v_BCHW.dtype, torch.float32))


def lambda_star(learned_BCHW: Tensor, guidance_BCHW: Tensor, *, per: Literal["sample", "batch"] = "sample") -> Tensor:
    """The scale that minimises ||R_cb - lambda R_tar||^2 (11, 12): <R_cb, R_tar> / ||R_tar||^2.

    Where the guidance vanishes the scale stays finite and the scaled guidance vanishes with it:
    |lambda| ||R_tar|| <= ||R_cb|| always.

    Args:
        learned_BCHW: R_cb = v_complete - v_orig (10).
        guidance_BCHW: R_tar (8).
        per: one scale for each sample, or the one that is best for the whole batch (then all are equal).
    """
    learned_BX, guidance_BX = _flat(learned_BCHW), _flat(guidance_BCHW)
    square_B = guidance_BX.square().sum(1)
    inner_B = (learned_BX * guidance_BX).sum(1)
    if per == "batch":
        floor = FLOOR * guidance_BX.numel()
        return (inner_B.sum() / square_B.sum().clamp_min(floor)).expand(len(inner_B))
    return inner_B / square_B.clamp_min(FLOOR * guidance_BX.shape[1])


def scale_of(lambda_B: Tensor, settings: LambdaSettings) -> Tensor:
    """What the settings make of the closed form: itself, or a fixed number."""
    return lambda_B if settings.fixed is None else torch.full_like(lambda_B, settings.fixed)


def guide(
    v_complete_BCHW: Tensor,
    v_orig_BCHW: Tensor,
    guidance_BCHW: Tensor,
    settings: LambdaSettings = LambdaSettings(),  # noqa: B008  (frozen)
) -> GuidanceStep:
    """v_pure = v_orig + lambda R_tar (13).

    lambda* minimises the loss, so by the envelope theorem detaching it leaves the gradient as it is. Another scale is
    a constant of the step: no gradient flows through it either.
    """
    guidance_BCHW = guidance_BCHW.detach()
    lambda_B = lambda_star((v_complete_BCHW - v_orig_BCHW).detach(), guidance_BCHW, per=settings.per)
    scale_B = scale_of(lambda_B, settings)
    scale_B111 = scale_B.reshape(-1, 1, 1, 1).to(guidance_BCHW.dtype)
    return GuidanceStep(lambda_B, scale_B, guidance_BCHW, v_orig_BCHW + scale_B111 * guidance_BCHW)


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean over the batch and all elements of the squared error, in at least float32 (3, 14)."""
    return (_flat(prediction_BCHW) - _flat(target_BCHW)).square().mean()


def cosine(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Cosine of two fields for each sample, 0 where one vanishes."""
    a_BX, b_BX = _flat(a_BCHW), _flat(b_BCHW)
    return (a_BX * b_BX).sum(1) / (a_BX.norm(dim=1) * b_BX.norm(dim=1)).clamp_min(1e-20)


def guidance_metrics(step: GuidanceStep, v_complete_BCHW: Tensor, v_orig_BCHW: Tensor) -> dict[str, Tensor]:
    """Metric keys of the guidance, each a scalar tensor without gradient.

    `lambda_star/*` is always the closed form; `guidance/scale` is there where the settings make something else of it.
    """
    scaled = {} if step.scale_B is step.lambda_star_B else {"guidance/scale": step.scale_B.mean()}
    lambda_B, learned_BCHW = step.lambda_star_B.detach(), (v_complete_BCHW - v_orig_BCHW).detach()
    return scaled | {
        "lambda_star/mean": lambda_B.mean(),
        "lambda_star/std": lambda_B.std(unbiased=False),
        "lambda_star/min": lambda_B.min(),
        "lambda_star/max": lambda_B.max(),
        "guidance/norm": _flat(step.guidance_BCHW).norm(dim=1).mean(),
        "guidance/cosine": cosine(learned_BCHW, step.guidance_BCHW).mean(),
    }
