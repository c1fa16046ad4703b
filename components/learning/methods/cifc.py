"""CIFC: concept after concept, each LoRA kept apart from those before it.

Source: Dong et al. 2024, "How to Continually Adapt Text-to-Image Diffusion Models for Flexible Customization?" (arXiv
2410.17594), by the loss of its public repository.
Trains: LoRA on every attention projection and the layer-wise embeddings.
Loss: L_CC + w (mean |B_new B_old^T| + mean (B_new - 1)^2), w = `learning.orthogonality_weight`; both terms are means
over modules and over the earlier adapters of `learning.earlier`, and there are none of them for the first concept.
Adaptations: B is LoRA's up matrix in every attention projection of both streams. The method's weights per layer at
inference, which follow the prompt, are no part of training and are not implemented: its adapters are composed like any
others (`components.backbones.composition`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from components.backbones import adapter_folder
from components.errors import InvalidInput
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample
from components.learning.losses import flow_matching_loss, step_loss
from components.learning.stages import Recipe
from components.learning.task import Task
from components.learning.training import Loss, StepLoss


def apart_loss(
    inner: Loss, parameters: Mapping[str, nn.Parameter], earlier: Sequence[Mapping[str, Tensor]], weight: float
) -> Loss:
    """L_CC and the distance to the earlier concepts' LoRA.

    Args:
        parameters: the LoRA that trains, as in `SD3Backbone.parameters`.
        earlier: the LoRA of each earlier concept, by the same names.
    """
    ups = {name: value for name, value in parameters.items() if name.endswith(".lora_B.weight")}

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        step = inner(flow, batch)
        crossed = [(value @ old[name].T).abs().mean() for old in earlier for name, value in ups.items()]
        raised = [(value - 1).square().mean() for value in ups.values()]
        apart = torch.stack(crossed).mean() + torch.stack(raised).mean()
        added = step_loss({"orthogonality": apart}, {"orthogonality": weight})
        total = step.total + added.total
        return StepLoss(total, {**step.metrics, **added.metrics, "loss/total": total.detach()})

    return loss


def prepare(task: Task) -> Recipe:
    task.add_adapter(lora=task.learning.lora, embeddings_NRD=task.initial_embeddings())
    loss, parameters = flow_matching_loss(task.backbone, task.stage), task.backbone.parameters(task.stage)["lora"]
    earlier = []
    for folder in task.earlier:
        files = adapter_folder.read(folder)
        shapes = {name: value.shape[0] for name, value in files.lora_weights.items() if name in parameters}
        if files.base_fingerprint != task.backbone.fingerprint or len(shapes) != len(parameters):
            raise InvalidInput(
                "no LoRA on every attention projection of this base", file=folder, field="learning.earlier"
            )
        earlier.append({name: value.to(task.backbone.device) for name, value in files.lora_weights.items()})
    if earlier:
        loss = apart_loss(loss, parameters, earlier, task.learning.orthogonality_weight)
    return Recipe(task.groups("lora", "embeddings"), loss)
