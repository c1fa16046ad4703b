"""Differential output preservation: LoRA that has to leave the prediction for the base text as it was.

Source: ai-toolkit and sd-scripts ship it; there is no paper. The fairest rival of pure learning: its anchor is the same
frozen base prediction, without an extractor.
Trains: LoRA on every attention projection.
Loss: L_CC + w ||v_theta(x_t | base) - v_0(x_t | base)||^2, w = `learning.dop_weight`, v_0 the base with its adapters
off.
Adaptations: the base text of the same image is the preservation prompt, at the same x_t.
"""

from __future__ import annotations

import torch

from components.backbones.sd3 import SD3Backbone
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample
from components.learning.losses import step_loss
from components.learning.objective import squared_error
from components.learning.stages import Recipe
from components.learning.task import Task
from components.learning.training import Loss, StepLoss

WEIGHT = 1.0
"""Where `learning.dop_weight` is not set."""


def preservation_loss(backbone: SD3Backbone, adapter: str, weight: float) -> Loss:
    """L_CC and the preservation of the prediction for the base text."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        x_BCHW, t_B = flow.x_t_BCHW, flow.t_B
        with torch.no_grad():
            v_0_BCHW = backbone.velocity(x_BCHW, t_B, batch.base, None)
        v_complete_BCHW, v_base_BCHW = backbone.velocities(
            x_BCHW, t_B, [(batch.complete, adapter), (batch.base, adapter)]
        )
        parts = {
            "cc": squared_error(v_complete_BCHW, flow.target_BCHW),
            "dop": squared_error(v_base_BCHW, v_0_BCHW),
        }
        return step_loss(parts, {"cc": 1.0, "dop": weight})

    return loss


def prepare(task: Task) -> Recipe:
    task.add_adapter(lora=task.learning.lora)
    weight = WEIGHT if task.learning.dop_weight is None else task.learning.dop_weight
    return Recipe(task.groups("lora"), preservation_loss(task.backbone, task.stage, weight))
