"""Mix-of-Show: embedding-decomposed LoRA (ED-LoRA).

Source: Gu et al. 2023 (arXiv 2305.18292).
Trains: LoRA on every attention projection, and the layer-wise embeddings, together from the first step.
Loss: L_CC (3).
Adaptations: ED-LoRA learns a pair of tokens, a random one and one that starts at the class word. Here the random one is
`[V]`, whose embeddings cover its CLIP and T5 rows; the class word stands beside it in every text ("[V] star") and stays
the base's. Several concepts: `fusion` in `components.backbones.composition`.
"""

from __future__ import annotations

from components.learning.losses import flow_matching_loss
from components.learning.stages import Recipe
from components.learning.task import Task


def prepare(task: Task) -> Recipe:
    task.add_adapter(lora=task.learning.lora, embeddings_NRD=task.initial_embeddings())
    return Recipe(task.groups("lora", "embeddings"), flow_matching_loss(task.backbone, task.stage))
