"""DreamBooth with elastic weight consolidation: weights that the base needs for its own images move less.

Source: Kirkpatrick et al. 2017 (arXiv 1612.00796) on DreamBooth, the pair of the PureCC paper's tables.
Trains: the weights and biases of every attention projection, as the difference d to the base's.
Loss: DreamBooth's + (mu / 2) sum_i F_i d_i^2, mu = `learning.ewc_weight`.
Adaptations: F is the diagonal Fisher information of the flow-matching loss on the prior's images: the squared gradient
of each image's loss at the base, averaged over images and over draws of t and noise. Its scale is that of a mean over
the latent's elements, hence arbitrary: it is divided by its mean, so that mu means the same on every base. Attention
only: F needs as much memory again as what trains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.backbones.lora import expected_modules
from components.backbones.sd3 import SD3Backbone
from components.backbones.weights import base_weights
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample
from components.learning.losses import step_loss
from components.learning.methods.prior import Prior, prior_preservation_loss
from components.learning.objective import squared_error
from components.learning.randomness import generator
from components.learning.stages import Recipe
from components.learning.task import Task
from components.learning.training import Loss, StepLoss
from components.learning_settings import LearningSettings

_DRAWS = 4
"""Draws of t and noise for each image of the prior."""


def attention_weights(backbone: SD3Backbone) -> dict[str, Tensor]:
    """Weights and biases of every attention projection."""
    modules = expected_modules(backbone.transformer)
    return {
        name: value for name, value in base_weights(backbone.transformer).items() if name.rpartition(".")[0] in modules
    }


def fisher_information(
    backbone: SD3Backbone, adapter: str, prior: Prior, learning: LearningSettings, seed: int
) -> dict[str, Tensor]:
    """The diagonal Fisher information of the adapter's weights where they stand, divided by its mean."""
    parameters = backbone.parameters(adapter)["weights"]
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for value in parameters.values():
        value.requires_grad_(True)
    for number in range(len(prior.latents_NCHW)):
        image = Prior(prior.latents_NCHW[number : number + 1], prior.texts.select([number]))
        random = generator(seed, "fisher", number)
        for _ in range(_DRAWS):
            flow, text = image.points(1, random, learning, backbone.timestep_shift)
            loss = squared_error(backbone.velocity(flow.x_t_BCHW, flow.t_B, text, adapter), flow.target_BCHW)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.square()
    for value in parameters.values():
        value.requires_grad_(False)
    mean = torch.cat([value.flatten() for value in total.values()]).mean()
    return {name: value / mean.clamp_min(torch.finfo(mean.dtype).tiny) for name, value in total.items()}


def elastic_loss(
    inner: Loss, parameters: Mapping[str, nn.Parameter], fisher: Mapping[str, Tensor], learning: LearningSettings
) -> Loss:
    """DreamBooth's loss and the penalty on what the base needs."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        step = inner(flow, batch)
        pulls = [(fisher[name] * value.square()).sum() for name, value in parameters.items()]
        added = step_loss({"ewc": torch.stack(pulls).sum() / 2}, {"ewc": learning.ewc_weight})
        total = step.total + added.total
        return StepLoss(total, {**step.metrics, **added.metrics, "loss/total": total.detach()})

    return loss


def prepare(task: Task) -> Recipe:
    prior = Prior.draw(task)
    task.add_weights(attention_weights(task.backbone))
    fisher = fisher_information(task.backbone, task.stage, prior, task.learning, task.profile.seed)
    inner = prior_preservation_loss(task.backbone, task.stage, prior, task.learning)
    parameters = task.backbone.parameters(task.stage)["weights"]
    return Recipe(task.groups("weights"), elastic_loss(inner, parameters, fisher, task.learning))
