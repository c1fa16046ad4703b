"""The feature encoder in DINOv2's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from components.world.oracle import attribute_labels
from components.world.pretraining.judges.judge import HALF, Judge, classification, judge_scene, targets, worn
from components.world.render import render


class DinoObjective(Judge):
    """A ViT in DINOv2's layout, its class token trained to tell looks, shapes, backgrounds and styles apart."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = attribute_labels()
        self.model = Dinov2Model(
            Dinov2Config(
                hidden_size=128, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=3, image_size=64, patch_size=8
            )
        )
        self.model.embeddings.mask_token.requires_grad_(False)  # no picture is masked here
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in self.labels.items()})

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [judge_scene(rng) for _ in range(size)]
        return {
            "images": worn(render(scenes).images_BCHW, rng),
            "targets": targets(scenes, self.labels),
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        token = self.model(pixel_values=batch["images"]).pooler_output
        loss, accuracies = classification({name: head(token) for name, head in self.heads.items()}, batch["targets"])
        return {"loss": loss, **accuracies}

    def save(self, folder: Path) -> None:
        """In the layout that `AutoModel` and `AutoImageProcessor` read."""
        self.model.save_pretrained(folder)
        BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **HALF).save_pretrained(
            folder
        )
