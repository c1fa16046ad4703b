"""The oracle and the evaluators of the family, each trained on renders whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from components.world.captions import full_caption, random_caption
from components.world.family import TEXT_LENGTH, clip_tokenizer
from components.world.oracle import NO_STYLE, PATTERNED, UNNAMED, Oracle, attribute_labels
from components.world.pretraining.loop import Objective
from components.world.render import Render, render
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
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "do_rescale": True}


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


def _targets(scenes: Sequence[Scene], labels: Mapping[str, list[str]]) -> dict[str, Tensor]:
    truths = [truth(scene) for scene in scenes]
    indices = {name: {word: index for index, word in enumerate(words)} for name, words in labels.items()}
    return {
        name: torch.tensor([IGNORED if item[name] is None else known[str(item[name])] for item in truths])
        for name, known in indices.items()
    }


def _worn(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Renders as a generator might give them: noisy, a little blurred, a little off in tone."""
    noise = torch.tensor(rng.uniform(0, 0.12, size=len(images)) * (rng.uniform(size=len(images)) < 0.7))
    images = images + noise.float().view(-1, 1, 1, 1) * torch.randn(images.shape)
    blurred = nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    share = torch.tensor(rng.uniform(0, 1, size=len(images)) * (rng.uniform(size=len(images)) < 0.5))
    images = images + share.float().view(-1, 1, 1, 1) * (blurred - images)
    tone = torch.tensor(rng.uniform(-0.06, 0.06, size=(len(images), 3, 1, 1))).float()
    return (images + tone).clamp(-1, 1)


def _classification(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
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


class OracleObjective(Judge):
    """Cross-entropy on every attribute that has an answer, and the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle(attribute_labels())

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [judge_scene(rng) for _ in range(size)]
        drawn: Render = render(scenes)
        return {
            "images": _worn(drawn.images_BCHW, rng),
            "mask": drawn.masks_BNHW.sum(1),
            "targets": _targets(scenes, self.oracle.labels),
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits, mask = self.oracle(batch["images"])
        loss, accuracies = _classification(logits, batch["targets"])
        mask_loss = nn.functional.binary_cross_entropy_with_logits(mask.float(), batch["mask"])
        return {"loss": loss + 2 * mask_loss, "mask": mask_loss.detach(), **accuracies}

    def save(self, folder: Path) -> None:
        """In the layout that `Oracle.load` reads."""
        self.oracle.save_pretrained(folder)


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
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in self.labels.items()})

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [judge_scene(rng) for _ in range(size)]
        return {
            "images": _worn(render(scenes).images_BCHW, rng),
            "targets": _targets(scenes, self.labels),
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        token = self.model(pixel_values=batch["images"]).pooler_output
        loss, accuracies = _classification({name: head(token) for name, head in self.heads.items()}, batch["targets"])
        return {"loss": loss, **accuracies}

    def save(self, folder: Path) -> None:
        """In the layout that `AutoModel` and `AutoImageProcessor` read."""
        self.model.save_pretrained(folder)
        BitImageProcessorPil(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **_HALF
        ).save_pretrained(folder)


class ClipObjective(Judge):
    """Contrastive image-text training on renders and their captions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer()
        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        }
        self.model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [random_scene(rng, JUDGE_MIX) for _ in range(size)]
        texts = [
            full_caption(scene) if rng.uniform() < 0.5 else random_caption(scene, rng, null=0.0) for scene in scenes
        ]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "images": _worn(render(scenes).images_BCHW, rng),
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
        self.model.save_pretrained(folder)
        images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **_HALF)
        CLIPProcessor(image_processor=images, tokenizer=self.tokenizer).save_pretrained(folder)


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
        return {"images": _worn(drawn.images_BCHW, rng), "labels": labels}

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
        SegformerImageProcessorPil(size={"height": 64, "width": 64}, **_HALF).save_pretrained(folder)
