"""Prior preservation (DreamBooth, Ruiz et al. 2022): images of the class that the base itself draws.

They are drawn from the class text and the profile's seed, kept as latents (what the autoencoder would make of its own
pictures), and drawn again when a training goes on: equal seeds, equal images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.concepts.texts import with_article
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample, sample_times
from components.learning.losses import noised, step_loss, velocities_at
from components.learning.objective import squared_error
from components.learning.randomness import derive_seed
from components.learning.task import Task
from components.learning.training import Loss, StepLoss
from components.learning_settings import LearningSettings


def prior_texts(concept: Concept) -> list[str]:
    """What the base is asked for: `a dog`; for a style, which has no class of things, the references' base texts."""
    if concept.kind == "style":
        return list(dict.fromkeys(reference.texts.base for reference in concept.references))
    return [with_article(concept.class_word)]


@dataclass(frozen=True)
class Prior:
    """Latents of the base's own images with their texts."""

    latents_NCHW: Tensor
    texts: TextEncoding

    @staticmethod
    def draw(task: Task) -> Prior:
        """The images of `learning.prior`, the texts in turn."""
        settings, texts = task.learning.prior, prior_texts(task.concept)
        encoded = task.encoded.select([texts[number % len(texts)] for number in range(settings.images)])
        null = task.encoded.select([""])
        seeds = [derive_seed(task.profile.seed, "prior", number) % 2**31 for number in range(settings.images)]
        size, latents = settings.sampling.batch_size, []
        for start in range(0, settings.images, size):
            members = range(start, min(start + size, settings.images))
            latents.append(
                task.backbone.sample_latents(
                    encoded.select(members),
                    null,
                    seeds=[seeds[number] for number in members],
                    steps=settings.sampling.steps,
                    guidance_scale=settings.sampling.guidance_scale,
                    adapter=None,
                )
            )
        return Prior(torch.cat(latents), encoded)

    def points(
        self, count: int, random: torch.Generator, learning: LearningSettings, shift: float
    ) -> tuple[FlowSample, TextEncoding]:
        """So many of the images, drawn with their t and noise from the generator."""
        chosen = torch.randint(len(self.latents_NCHW), (count,), generator=random).tolist()
        t_B = sample_times(count, generator=random, mean=learning.logit_mean, std=learning.logit_std, shift=shift)
        return noised(self.latents_NCHW[chosen], random, t_B), self.texts.select(chosen)


def prior_preservation_loss(backbone: SD3Backbone, adapter: str, prior: Prior, learning: LearningSettings) -> Loss:
    """L_CC + w times the same loss on as many of the prior's images, in one pass."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        assert batch.random is not None, "the loop gives it"
        ours, text = prior.points(len(flow.t_B), batch.random, learning, backbone.timestep_shift)
        v_BCHW, v_prior_BCHW = velocities_at(backbone, [(flow, batch.complete), (ours, text)], adapter)
        parts = {
            "cc": squared_error(v_BCHW, flow.target_BCHW),
            "prior": squared_error(v_prior_BCHW, ours.target_BCHW),
        }
        return step_loss(parts, {"cc": 1.0, "prior": learning.prior.weight})

    return loss
