"""The style encoder: a CLIP picture tower whose projection tells styles apart, whatever they are put on.

Supervised contrastive learning (Khosla et al., 2020), as CSD is trained: pictures of one style are positives, whatever
they show. Each scene also appears in two styles, so that content is of no use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from components.world.pretraining.judges.judge import HALF, Judge, worn
from components.world.render import render
from components.world.scene import SceneMix, random_scene
from components.world.vocabulary import HELD_OUT_STYLES, Style, named_styles, random_style

_TEMPERATURE = 0.1
_NO_STYLE, _UNNAMED = 0.1, 0.4
"""Shares of scenes without a style, and in one of the whole continuous family; the rest wear one that has a name."""


def draw_style(rng: np.random.Generator) -> Style | None:
    """A style, or none. Held-out ones are among the named: a judge has to know them."""
    draw = rng.uniform()
    if draw < _NO_STYLE:
        return None
    if draw < _NO_STYLE + _UNNAMED:
        return random_style(rng)
    known = [*named_styles().values(), *HELD_OUT_STYLES.values()]
    return known[int(rng.integers(len(known)))]


def contrastive_loss(features_ND: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss of unit features: mean over pictures of the mean over their positives of
    -log softmax of the similarity among all other pictures. Every picture has a positive."""
    itself_NN = torch.eye(len(labels_N), dtype=torch.bool, device=features_ND.device)
    logits_NN = (features_ND @ features_ND.T / temperature).masked_fill(itself_NN, float("-inf"))
    positive_NN = (labels_N[:, None] == labels_N[None, :]) & ~itself_NN
    log_likelihood_NN = logits_NN.log_softmax(-1).masked_fill(~positive_NN, 0.0)
    return -(log_likelihood_NN.sum(-1) / positive_NN.sum(-1)).mean()


class StyleObjective(Judge):
    """A small CLIPVisionModelWithProjection, trained to tell styles apart."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=96,
                intermediate_size=288,
                num_hidden_layers=4,
                num_attention_heads=2,
                image_size=64,
                patch_size=8,
                projection_dim=64,
            )
        )

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        count = max(2, size // 2)
        styles = [draw_style(rng) for _ in range(count)]
        plain = SceneMix(named_style=0.0, unnamed_style=0.0)
        contents = [random_scene(rng, plain) for _ in range(count)]
        # Style k on the contents k and k + 1: two pictures of each style, two styles for each content.
        scenes = [
            dataclasses.replace(contents[(index + shift) % count], style=style)
            for shift in (0, 1)
            for index, style in enumerate(styles)
        ]
        labels = torch.tensor([styles.index(style) for style in styles])
        return {"images": worn(render(scenes).images_BCHW, rng), "labels": labels.repeat(2)}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        features = nn.functional.normalize(self.model(pixel_values=batch["images"]).image_embeds.float(), dim=-1)
        labels = batch["labels"].to(features.device)
        nearest = (features @ features.T).fill_diagonal_(-2).argmax(-1)
        found = (labels[nearest] == labels).float().mean()
        return {"loss": contrastive_loss(features, labels, _TEMPERATURE), "retrieval": found.detach()}

    def save(self, folder: Path) -> None:
        """In half precision, in the layout that `StyleEncoder` reads."""
        self.model.half().save_pretrained(folder)
        self.model.float()
        CLIPImageProcessorPil(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **HALF
        ).save_pretrained(folder)
