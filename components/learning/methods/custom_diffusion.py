"""Custom Diffusion: keys and values of the text, and the concept's token.

Source: Kumari et al. 2022 (arXiv 2212.04488).
Trains: the weights of the text stream's key and value projections, `add_k_proj` and `add_v_proj` of every block, as
differences to the base's, and the embeddings of `[V]`.
Loss: L_CC + `learning.prior.weight` x the same loss on images of the class.
Adaptations: MM-DiT has no cross-attention; its joint attention reads the text through these two projections. The
images of the class are drawn by the base (the paper's own ablation), not retrieved. The second attention of SD 3.5 sees
no text and is left alone.
"""

from __future__ import annotations

from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.backbones.weights import base_weights
from components.learning.methods.prior import Prior, prior_preservation_loss
from components.learning.stages import Recipe
from components.learning.task import Task

PROJECTIONS = ("attn.add_k_proj.weight", "attn.add_v_proj.weight")


def text_projections(backbone: SD3Backbone) -> dict[str, Tensor]:
    """The text stream's key and value projections."""
    weights = base_weights(backbone.transformer)
    return {name: value for name, value in weights.items() if name.endswith(PROJECTIONS)}


def prepare(task: Task) -> Recipe:
    prior = Prior.draw(task)
    task.add_weights(text_projections(task.backbone), embeddings_NRD=task.initial_embeddings())
    loss = prior_preservation_loss(task.backbone, task.stage, prior, task.learning)
    return Recipe(task.groups("weights", "embeddings"), loss)
