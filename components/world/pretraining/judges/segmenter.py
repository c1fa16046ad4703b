"""The segmenter: objects, and which background stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from components.world.pretraining.judges.judge import HALF, Judge, worn
from components.world.render import render
from components.world.scene import SceneMix, random_scene
from components.world.vocabulary import BACKGROUNDS


class SegmenterObjective(Judge):
    """A SegFormer that labels each pixel with `object` or with the background that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [*BACKGROUNDS, "object"]
        self.model = SegformerForSemanticSegmentation(
            SegformerConfig(
                depths=[1, 1, 2, 1],
                hidden_sizes=[24, 48, 96, 128],
                num_attention_heads=[1, 2, 3, 4],
                sr_ratios=[4, 2, 1, 1],
                patch_sizes=[3, 3, 3, 3],
                strides=[2, 2, 2, 2],
                mlp_ratios=[2, 2, 2, 2],
                decoder_hidden_size=64,
                id2label=dict(enumerate(self.names)),
                label2id={name: index for index, name in enumerate(self.names)},
                semantic_loss_ignore_index=255,
            )
        )

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        mix = SceneMix(two_objects=0.4, no_object=0.03, named_look=0.4, unnamed_look=0.2, unnamed_style=0.1)
        scenes = [random_scene(rng, mix) for _ in range(size)]
        drawn = render(scenes)
        grounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
        covered = drawn.masks_BNHW.sum(1) > 0.5
        labels = torch.where(covered, len(BACKGROUNDS), grounds.view(-1, 1, 1))
        return {"images": worn(drawn.images_BCHW, rng), "labels": labels}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits = self.model(pixel_values=batch["images"]).logits.float()
        logits = nn.functional.interpolate(logits, size=batch["labels"].shape[-2:], mode="bilinear")
        chosen, labels = logits.argmax(1), batch["labels"]
        inside, found = (values == len(BACKGROUNDS) for values in (labels, chosen))
        iou = (inside & found).sum() / (inside | found).sum().clamp(min=1)
        return {
            "loss": nn.functional.cross_entropy(logits, labels),
            "iou": iou.detach(),
            "background": (chosen == labels)[~inside].float().mean().detach(),
        }

    def save(self, folder: Path) -> None:
        """In the layout that `AutoModelForSemanticSegmentation` and `AutoImageProcessor` read."""
        self.model.save_pretrained(folder)
        SegformerImageProcessorPil(size={"height": 64, "width": 64}, **HALF).save_pretrained(folder)
