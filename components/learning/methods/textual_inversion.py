"""Textual Inversion: the model stays as it is, only the concept's embeddings are learned.

Source: Gal et al. 2022 (arXiv 2208.01618) with `learning.embeddings: single`; P+ (Voynov et al. 2023, arXiv 2303.09522)
with `per-layer`.
Trains: the embeddings.
Loss: L_CC (3).
Adaptations: SD3 has three text encoders whose outputs become context rows. The embeddings are learned there, as the
rows of `[V]` at the input of the transformer's blocks (7), of the first block or of each: one place instead of three
vocabularies, and no encoder in memory. The pooled vector keeps the placeholder word.
"""

from __future__ import annotations

from components.learning.losses import flow_matching_loss
from components.learning.stages import Recipe
from components.learning.task import Task


def prepare(task: Task) -> Recipe:
    task.add_adapter(embeddings_NRD=task.initial_embeddings())
    return Recipe(task.groups("embeddings"), flow_matching_loss(task.backbone, task.stage))
