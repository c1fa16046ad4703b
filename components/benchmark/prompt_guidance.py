"""lambda* on the prompts of an evaluation: how much of the extractor's guidance an adapter follows in other pictures.

Training logs lambda* on the references alone. Here it is taken where the prompts lead: at the original model's own
pictures of them, noised, with and without the concept in the text.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.concepts.images import load_image
from components.evaluation.lambda_study import PROMPT_COSINE, PROMPT_LAMBDA
from components.evaluation.result import EvaluationResult
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import sample_times
from components.learning.losses import noised
from components.learning.methods.purecc import frozen_velocities
from components.learning.objective import cosine, lambda_star
from components.learning.randomness import generator
from components.learning.task import EXTRACTOR
from components.learning_settings import LearningSettings

_DRAWS = 4
"""Draws of t and noise for each prompt; lambda* is the one scale that is best for all of them."""


def guidance_by_category(
    backbone: SD3Backbone, adapter: str, concept: Concept, learning: LearningSettings, extractor: Path, folder: Path
) -> list[dict[str, Any]]:
    """lambda* (11, 12) and the guidance cosine by category of prompts, means over its prompts.

    v_orig is the untouched base's, whatever the adapter was trained against: so lambda* is 0 where the adapter changes
    nothing, and on a prompt without the concept it says how much of the concept comes along uncalled.

    Args:
        adapter: loaded, with the concept.
        extractor: the adapter folder of stage 1, whose guidance the adapter was trained with.
        folder: of the adapter's `EvaluationResult`, with its pictures.

    Returns:
        rows of `category`, `metric` and `value`, as those of `result.category_rows`.
    """
    result = EvaluationResult.from_json(folder)
    texts = concept.references[0].texts
    fixed = backbone.encode_text([texts.target, texts.class_text, ""])
    target, class_text, null = (fixed.select([index] * _DRAWS) for index in range(3))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    backbone.load_adapter(extractor, EXTRACTOR)
    try:
        for row in result.rows:
            image_CHW = load_image(folder / row["images"]["original"], backbone.settings.resolution)
            encoded = backbone.encode_text([row["complete"], row["base"]])
            complete, base = (encoded.select([index] * _DRAWS) for index in range(2))
            latents_BCHW = backbone.encode_image(image_CHW[None]).expand(_DRAWS, -1, -1, -1)
            batch = ConditionedBatch(latents_BCHW, complete, base, target, class_text, null)
            random = generator(row["seed"], "guidance on prompts")
            scale, alike = guidance_at(backbone, adapter, batch, learning, random)
            found[row["category"], PROMPT_LAMBDA].append(float(scale))
            found[row["category"], PROMPT_COSINE].append(float(alike))
    finally:
        backbone.remove_adapter(EXTRACTOR)
    return [
        {"category": category, "metric": metric, "value": fmean(values)} for (category, metric), values in found.items()
    ]


@torch.no_grad()
def guidance_at(
    backbone: SD3Backbone, adapter: str, batch: ConditionedBatch, learning: LearningSettings, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """lambda* that is best for the whole batch, and the mean guidance cosine, at times and noise of the generator."""
    t_B = sample_times(
        len(batch.x_0_BCHW),
        generator=random,
        mean=learning.logit_mean,
        std=learning.logit_std,
        shift=backbone.timestep_shift,
    )
    flow = noised(batch.x_0_BCHW, random, t_B.to(batch.x_0_BCHW.device))
    frozen = frozen_velocities(backbone, EXTRACTOR, learning.model_copy(update={"original": "frozen"}))
    guidance_BCHW, v_orig_BCHW = frozen(flow, batch)
    learned_BCHW = backbone.velocity(flow.x_t_BCHW, flow.t_B, batch.complete, adapter) - v_orig_BCHW
    return lambda_star(learned_BCHW, guidance_BCHW, per="batch")[0], cosine(learned_BCHW, guidance_BCHW).mean()
