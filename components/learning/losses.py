"""Losses that several methods share; each in the notation of METHOD section 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample, interpolate
from components.learning.objective import squared_error
from components.learning.training import Loss, StepLoss


def step_loss(parts: dict[str, Tensor], weights: dict[str, float]) -> StepLoss:
    """The weighted sum of named parts; each part is a metric `loss/<name>`, as it is before its weight."""
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    metrics = {f"loss/{name}": value.detach() for name, value in parts.items()}
    return StepLoss(total, metrics | {"loss/total": total.detach()})


def flow_matching_loss(backbone: SD3Backbone, adapter: str) -> Loss:
    """L_CC (3): plain conditional flow matching on the complete text."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        v_BCHW = backbone.velocity(flow.x_t_BCHW, flow.t_B, batch.complete, adapter)
        total = squared_error(v_BCHW, flow.target_BCHW)
        return StepLoss(total, {"loss/cc": total.detach(), "loss/total": total.detach()})

    return loss


def velocities_at(
    backbone: SD3Backbone, points: Sequence[tuple[FlowSample, TextEncoding]], adapter: str
) -> list[Tensor]:
    """The velocities at several points under one adapter, in one pass."""
    v_BCHW = backbone.velocity(
        torch.cat([flow.x_t_BCHW for flow, _ in points]),
        torch.cat([flow.t_B for flow, _ in points]),
        TextEncoding.cat([text for _, text in points]),
        adapter,
    )
    return list(v_BCHW.split([len(text) for _, text in points]))


def noised(x_0_BCHW: Tensor, random: torch.Generator, times_B: Tensor) -> FlowSample:
    """Latents noised to these times by noise of the generator, which lies on the CPU."""
    x_1_BCHW = torch.randn(x_0_BCHW.shape, generator=random)
    return interpolate(x_0_BCHW, x_1_BCHW.to(x_0_BCHW.device), times_B.to(x_0_BCHW.device))
