"""DreamBooth: all weights of the transformer are fine-tuned, with prior preservation.

Source: Ruiz et al. 2022 (arXiv 2208.12242).
Trains: every weight of the transformer (not the text encoders, not the autoencoder), as the difference to the base's:
`weight_differences.safetensors` holds it exactly, so that the shared base stays as it is.
Loss: L_CC + `learning.prior.weight` x the same loss on images of the class that the base draws (see `prior`).
Adaptations: the flow-matching loss in the place of the noise prediction; class images drawn anew from the seed.
"""

from __future__ import annotations

from components.backbones.weights import base_weights
from components.learning.methods.prior import Prior, prior_preservation_loss
from components.learning.stages import Recipe
from components.learning.task import Task


def prepare(task: Task) -> Recipe:
    prior = Prior.draw(task)
    task.add_weights(base_weights(task.backbone.transformer))
    return Recipe(task.groups("weights"), prior_preservation_loss(task.backbone, task.stage, prior, task.learning))
