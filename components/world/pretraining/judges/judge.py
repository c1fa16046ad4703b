"""What all judges share: the scenes they learn from, their truth, and pictures as a generator might give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from components.world.oracle import NO_STYLE, PATTERNED, UNNAMED
from components.world.pretraining.loop import Objective
from components.world.scene import Scene, SceneMix, place, random_scene
from components.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_LOOKS,
    HELD_OUT_STYLES,
    POSITIONS,
    SHAPES,
    SIZES,
)

IGNORED = -100
JUDGE_MIX = SceneMix(
    two_objects=0.12, no_object=0.0, named_look=0.5, unnamed_look=0.12, named_style=0.12, unnamed_style=0.02
)
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "do_rescale": True}


def judge_scene(rng: np.random.Generator) -> Scene:
    """A random scene; now and then one that wears a held-out look or style, which judges have to know."""
    scene = random_scene(rng, JUDGE_MIX)
    draw = rng.uniform()
    if draw < 0.08 and len(scene.objects) == 1:
        word = str(rng.choice(list(HELD_OUT_LOOKS)))
        item = place(
            str(rng.choice(SHAPES)), HELD_OUT_LOOKS[word], word, str(rng.choice(POSITIONS)), str(rng.choice(SIZES)), rng
        )
        return Scene(str(rng.choice(BACKGROUNDS)), (item,), None, None, scene.phase)
    if draw < 0.12:
        word = str(rng.choice(list(HELD_OUT_STYLES)))
        return Scene(scene.background, scene.objects, HELD_OUT_STYLES[word], word, scene.phase)
    return scene


def truth(scene: Scene) -> dict[str, str | None]:
    """Attribute -> its label; None where the question has no answer (which object of two, colour under a style)."""
    single = scene.objects[0] if len(scene.objects) == 1 else None
    look = None if single is None or scene.style is not None else single.look_word or UNNAMED
    return {
        "background": scene.background,
        "shape": single.shape if single else None,
        "position": single.position if single else None,
        "size": single.size if single else None,
        "colour": None if look is None else look if look in COLOURS else PATTERNED,
        "look": look,
        "style": NO_STYLE if scene.style is None else scene.style_word or UNNAMED,
    }


def targets(scenes: Sequence[Scene], labels: Mapping[str, list[str]]) -> dict[str, Tensor]:
    truths = [truth(scene) for scene in scenes]
    indices = {name: {word: index for index, word in enumerate(words)} for name, words in labels.items()}
    return {
        name: torch.tensor([IGNORED if item[name] is None else known[str(item[name])] for item in truths])
        for name, known in indices.items()
    }


def worn(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Renders as a generator might give them: noisy, a little blurred, a little off in tone."""
    noise = torch.tensor(rng.uniform(0, 0.12, size=len(images)) * (rng.uniform(size=len(images)) < 0.7))
    images = images + noise.float().view(-1, 1, 1, 1) * torch.randn(images.shape)
    blurred = nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    share = torch.tensor(rng.uniform(0, 1, size=len(images)) * (rng.uniform(size=len(images)) < 0.5))
    images = images + share.float().view(-1, 1, 1, 1) * (blurred - images)
    tone = torch.tensor(rng.uniform(-0.06, 0.06, size=(len(images), 3, 1, 1))).float()
    return (images + tone).clamp(-1, 1)


def classification(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    total, accuracies = torch.zeros(()), {}
    for name, values in logits.items():
        target = targets[name].to(values.device)
        total = total + nn.functional.cross_entropy(values.float(), target, ignore_index=IGNORED)
        known = target != IGNORED
        accuracies[name] = (values.argmax(-1) == target)[known].float().mean().detach()
    return total, accuracies


class Judge(Objective):
    """An objective whose trained model is saved on its own."""

    def save(self, folder: Path) -> None:
        """Write the model in the layout that its loader reads."""
        raise NotImplementedError
