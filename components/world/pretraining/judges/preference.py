"""Preference models in CLIP's layout: which of two pictures serves a caption better?

Trained as PickScore and HPSv2 are, by the probability softmax(scale x cosine) of the preferred one of two pictures; as
no trained CLIP is underneath, the contrastive loss of CLIP goes along. The picture that is not preferred is the same
render damaged, or the render of a scene that differs from the caption in one thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.world.captions import full_caption
from components.world.family import clip_tokenizer
from components.world.pretraining.judges.clip import save_clip, untrained_clip
from components.world.pretraining.judges.corruptions import corrupted
from components.world.pretraining.judges.judge import Judge, worn
from components.world.render import render
from components.world.scene import Scene, SceneMix, random_scene
from components.world.vocabulary import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, named_looks, solid

_MIX = SceneMix(two_objects=0.1, no_object=0.03, named_look=0.4, unnamed_look=0.0, named_style=0.1, unnamed_style=0.0)
_CONTRAST = 0.1
"""Weight of CLIP's loss; with 0.5 the damage of pictures is hardly learned."""


def _another(rng: np.random.Generator, words: Sequence[str], than: str | None) -> str:
    return str(rng.choice([word for word in words if word != than]))


def contradict(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that differs from the given one in one thing that its full caption states."""

    def background() -> Scene:
        return dataclasses.replace(scene, background=_another(rng, BACKGROUNDS, scene.background))

    if not scene.objects:
        return background()
    first, *rest = scene.objects

    def with_first(**changes: Any) -> Scene:
        return dataclasses.replace(scene, objects=(dataclasses.replace(first, **changes), *rest))

    def look() -> Scene:
        if rng.uniform() < 0.5:
            word = _another(rng, list(COLOURS), first.look_word)
            return with_first(look=solid(word), look_word=word)
        word = _another(rng, list(named_looks()), first.look_word)
        return with_first(look=named_looks()[word], look_word=word)

    edits: list[Callable[[], Scene]] = [background]
    edits.append(lambda: with_first(shape=_another(rng, SHAPES, first.shape)))
    if scene.style is None:  # a style's tone map can hide a colour
        edits.append(look)
    if not rest:  # two objects keep out of each other's way
        edits.append(lambda: with_first(position=_another(rng, POSITIONS, first.position)))
    return edits[int(rng.integers(len(edits)))]()


class PreferenceObjective(Judge):
    """A small CLIP that prefers clean pictures of what the caption says.

    Args:
        damaged: the share of pairs in which the other picture is damaged; in the rest it shows something else.
    """

    def __init__(self, damaged: float) -> None:
        super().__init__()
        self.damaged = damaged
        self.tokenizer = clip_tokenizer()
        self.model = untrained_clip(self.tokenizer, width=96, text_blocks=2, text_inner=192)

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [random_scene(rng, _MIX) for _ in range(size)]
        is_damaged = rng.uniform(size=size) < self.damaged
        good = render(scenes).images_BCHW
        others = [
            scene if damaged else contradict(scene, rng) for scene, damaged in zip(scenes, is_damaged, strict=True)
        ]
        bad = render(others).images_BCHW
        where = torch.from_numpy(is_damaged)
        if is_damaged.any():
            bad[where] = corrupted(bad[where], rng)
        tokens = self.tokenizer(
            [full_caption(scene) for scene in scenes], padding="max_length", truncation=True, return_tensors="pt"
        )
        return {
            "images": torch.cat([worn(good, rng), worn(bad, rng)]),
            "ids": tokens.input_ids,
            "attention": tokens.attention_mask,
            "damaged": where,
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        output = self.model(pixel_values=batch["images"], input_ids=batch["ids"], attention_mask=batch["attention"])
        logits_per_text = output.logits_per_text.float()  # (texts, good pictures then bad ones)
        count = len(logits_per_text)
        truth = torch.arange(count, device=logits_per_text.device)
        good = logits_per_text[:, :count]
        preferred, other = good.diagonal(), logits_per_text[:, count:].diagonal()
        choice = nn.functional.softplus(other - preferred).mean()
        contrast = nn.functional.cross_entropy(good, truth) + nn.functional.cross_entropy(good.T, truth)
        right, damaged = (preferred > other).float(), batch["damaged"].to(preferred.device)
        return {
            "loss": choice + _CONTRAST * contrast,
            "over_damaged": right[damaged].mean().detach(),
            "over_another": right[~damaged].mean().detach(),
        }

    def save(self, folder: Path) -> None:
        """In half precision, in the layout that `CLIPModel` and `CLIPProcessor` read."""
        save_clip(self.model.half(), self.tokenizer, folder)
        self.model.float()
