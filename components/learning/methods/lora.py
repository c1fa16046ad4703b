"""LoRA by L_CC alone, as people train it ("DreamBooth-LoRA").

Source: Hu et al. 2021 (arXiv 2106.09685), in the recipe of diffusers' DreamBooth scripts for SD3.
Trains: LoRA on every attention projection of both streams, `attn` and `attn2`. No embeddings: `[V]` stays a rare word.
Loss: L_CC (3).
Adaptations: none; logit-normal t and the scheduler's shift are SD3's own.
"""

from __future__ import annotations

from components.learning.losses import flow_matching_loss
from components.learning.stages import Recipe
from components.learning.task import Task


def prepare(task: Task) -> Recipe:
    task.add_adapter(lora=task.learning.lora)
    return Recipe(task.groups("lora"), flow_matching_loss(task.backbone, task.stage))
