"""Pictures and texts in one space: the world's CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from components.world.captions import full_caption, random_caption
from components.world.family import TEXT_LENGTH, clip_tokenizer
from components.world.pretraining.judges.judge import HALF, JUDGE_MIX, Judge, worn
from components.world.render import render
from components.world.scene import random_scene


def untrained_clip(tokenizer: CLIPTokenizer, *, width: int, text_blocks: int, text_inner: int) -> CLIPModel:
    """A CLIP of 64 x 64 pictures for the world's words.

    Args:
        width: of both towers and of their common space.
        text_blocks, text_inner: layers of the text tower, and the width inside them.
    """
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": text_inner,
        "num_hidden_layers": text_blocks,
        "num_attention_heads": 2,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """In the layout that `CLIPModel` and `CLIPProcessor` read."""
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **HALF)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


class ClipObjective(Judge):
    """Contrastive image-text training on renders and their captions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer()
        self.model = untrained_clip(self.tokenizer, width=128, text_blocks=3, text_inner=256)

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [random_scene(rng, JUDGE_MIX) for _ in range(size)]
        texts = [
            full_caption(scene) if rng.uniform() < 0.5 else random_caption(scene, rng, null=0.0) for scene in scenes
        ]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "images": worn(render(scenes).images_BCHW, rng),
            "ids": tokens.input_ids,
            "attention": tokens.attention_mask,
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        output = self.model(
            pixel_values=batch["images"], input_ids=batch["ids"], attention_mask=batch["attention"], return_loss=True
        )
        chosen = output.logits_per_text.argmax(-1)
        truth_ = torch.arange(len(chosen), device=chosen.device)
        return {"loss": output.loss.float(), "retrieval": (chosen == truth_).float().mean().detach()}

    def save(self, folder: Path) -> None:
        """In the layout that `CLIPModel` and `CLIPProcessor` read."""
        save_clip(self.model, self.tokenizer, folder)
