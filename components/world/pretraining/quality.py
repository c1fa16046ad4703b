"""How well a base draws what a prompt says, by the oracle, and how well the oracle sees."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.backbones.interface import Backbone
from components.world.captions import full_caption, subject_phrase
from components.world.oracle import UNNAMED, Oracle
from components.world.pretraining.judges.judge import judge_scene, truth
from components.world.render import render
from components.world.scene import Scene, place
from components.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Look,
    named_looks,
    named_styles,
    solid,
)

logger = logging.getLogger(__name__)
GUIDANCE_SCALE = 4.0
STEPS = 28
PLAIN_SIGHT = 0.5
"""Of `contrasts`: from here on nobody overlooks an object."""


@dataclass(frozen=True)
class PromptFamily:
    """Prompts of one form and the attributes they ask for."""

    name: str
    prompts: tuple[str, ...]
    asked: tuple[dict[str, str], ...]


def _family(name: str, count: int, draw: Callable[[], tuple[str, dict[str, str]]]) -> PromptFamily:
    drawn = [draw() for _ in range(count)]
    return PromptFamily(name, tuple(text for text, _ in drawn), tuple(asked for _, asked in drawn))


def prompt_families(count: int, *, seed: int) -> list[PromptFamily]:
    """`count` single-object prompts in plain colours, and a quarter as many of every other form."""
    rng = np.random.default_rng((seed, 13))

    def item(word: str, look: Look) -> tuple[Scene, dict[str, str]]:
        thing = place(str(rng.choice(SHAPES)), look, word, str(rng.choice(POSITIONS)), str(rng.choice(SIZES)), rng)
        scene = Scene(str(rng.choice(BACKGROUNDS)), (thing,))
        return scene, {"background": scene.background, "shape": thing.shape, "position": thing.position}

    def plain() -> tuple[str, dict[str, str]]:
        word = str(rng.choice(list(COLOURS)))
        scene, asked = item(word, solid(word))
        return full_caption(scene), {**asked, "colour": word}

    def named() -> tuple[str, dict[str, str]]:
        word = str(rng.choice(list(named_looks())))
        scene, asked = item(word, named_looks()[word])
        return full_caption(scene), {**asked, "look": word}

    def short() -> tuple[str, dict[str, str]]:
        word = str(rng.choice(list(COLOURS)))
        scene, asked = item(word, solid(word))
        text = subject_phrase(scene.objects[0], look=word, size=False, position=False)
        return text, {"shape": asked["shape"], "colour": word}

    def class_word() -> tuple[str, dict[str, str]]:
        shape = str(rng.choice(SHAPES))
        return shape if rng.uniform() < 0.5 else f"a {shape}", {"shape": shape}

    def styled() -> tuple[str, dict[str, str]]:
        word = str(rng.choice(list(named_styles())))
        text, asked = plain()
        return f"{text}, in {word} style", {name: asked[name] for name in ("background", "shape", "position")} | {
            "style": word
        }

    quarter = max(1, count // 4)
    return [
        _family("single object", count, plain),
        _family("named look", quarter, named),
        _family("short", quarter, short),
        _family("class word", quarter, class_word),
        _family("named style", quarter, styled),
    ]


def sample_prompts(backbone: Backbone, prompts: Sequence[str], *, seed: int, batch_size: int = 32) -> Tensor:
    """One image per prompt, seeds counting up from `seed`."""
    negative = backbone.encode_text([""])
    images = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        images.append(
            backbone.sample(
                backbone.encode_text(part),
                negative,
                seeds=range(seed + start, seed + start + len(part)),
                steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                adapter=None,
            ).cpu()
        )
        logger.info("quality: %d of %d images", start + len(part), len(prompts))
    return torch.cat(images)


def accuracy(oracle: Oracle, images: Tensor, asked: Sequence[dict[str, str]]) -> dict[str, float]:
    """Share of images that show what was asked, by attribute and for `all` of them together."""
    seen = oracle.predict(images)
    right = [{name: seen[name][index] == word for name, word in item.items()} for index, item in enumerate(asked)]
    result = {name: float(np.mean([item[name] for item in right])) for name in asked[0]}
    return {**result, "all": float(np.mean([all(item.values()) for item in right]))}


def base_quality(
    backbone: Backbone, oracle: Oracle, *, count: int, seed: int
) -> tuple[dict[str, dict[str, float]], Tensor, tuple[str, ...]]:
    """Prompt family -> attribute -> accuracy; with the first family's images and prompts, to look at."""
    result: dict[str, dict[str, float]] = {}
    shown: Tensor = torch.empty(0)
    texts: tuple[str, ...] = ()
    for family in prompt_families(count, seed=seed):
        images = sample_prompts(backbone, family.prompts, seed=seed)
        result[family.name] = accuracy(oracle, images, family.asked)
        if not len(shown):
            shown, texts = images, family.prompts
    return result, shown, texts


def oracle_scenes(count: int, seed: int) -> dict[str, list[Scene]]:
    """Held-out scenes to measure the oracle on: as they are, in a style, and those of the latter in plain sight.

    A style's tone map can give an object the colours of what is behind it, and hide it from anyone.
    """
    rng = np.random.default_rng((seed, 17))
    scenes = [judge_scene(rng) for _ in range(count)]
    styled = [scene for scene in scenes if scene.style is not None]
    clear = [scene for scene in styled if contrasts([scene])[0] >= PLAIN_SIGHT]
    plain = [scene for scene in scenes if scene.style is None]
    found = {"scenes": plain, "scenes in a style": styled, "in a style, in plain sight": clear}
    return {name: kept for name, kept in found.items() if kept}


def contrasts(scenes: Sequence[Scene]) -> list[float]:
    """How much objects change the picture where they are: mean absolute difference to the empty scene, 0 to 2."""
    with_objects = render(scenes)
    without = render([dataclasses.replace(scene, objects=()) for scene in scenes]).images_BCHW
    changes_BHW = (with_objects.images_BCHW - without).abs().mean(1)
    masks_BHW = with_objects.masks_BNHW.sum(1) > 0.5
    return [float(change[mask].mean()) for change, mask in zip(changes_BHW, masks_BHW, strict=True)]


def oracle_quality(oracle: Oracle, scenes: Sequence[Scene]) -> dict[str, float]:
    """Accuracy of each attribute on renders of scenes that have an answer, and the masks' IoU.

    Looks and styles without a name are a question of their own (`unnamed look`): one random draw may be anywhere near a
    named one, and to know it from all of those is harder than to know the named ones from each other.
    """
    drawn = render(scenes)
    seen = oracle.predict(drawn.images_BCHW)
    answers: dict[str, list[bool]] = {}
    for index, expected in enumerate(map(truth, scenes)):
        for name, label in expected.items():
            if label is not None:
                key = f"unnamed {name}" if label == UNNAMED else name
                answers.setdefault(key, []).append(seen[name][index] == label)
    masks = torch.cat([oracle.object_mask(part) for part in drawn.images_BCHW.split(128)]) > 0.5
    true = drawn.masks_BNHW.sum(1) > 0.5
    iou = float((masks & true).sum() / (masks | true).sum())
    return {**{name: float(np.mean(right)) for name, right in answers.items()}, "mask_iou": iou}
