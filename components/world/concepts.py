"""The shipped concepts: held-out looks and styles, rendered from seeds into concept folders.

Every reference of an instance stands on the same background, so that context is entangled with the concept, as it is
in the few photos that people have of a thing. Captions name the background, which tells the two apart; of the concepts
called `_bare` they do not, and the pictures are those of the concept without the suffix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from components.files import atomic_folder
from components.world.captions import full_caption, subject_phrase
from components.world.render import render
from components.world.scene import Scene, place
from components.world.vocabulary import BACKGROUNDS, COLOURS, HELD_OUT_LOOKS, HELD_OUT_STYLES, SHAPES, solid

_LICENSE = "CC0-1.0"


@dataclass(frozen=True)
class InstanceConcept:
    """A shape in a held-out look, before one background, which captions name or not, in so many references."""

    look: str
    shape: str
    background: str
    references: int = 4
    named_background: bool = True


INSTANCES = {
    "striped_star": InstanceConcept("striped", "star", "brick"),
    "checked_heart": InstanceConcept("checked", "heart", "grass"),
    "dotted_circle": InstanceConcept("dotted", "circle", "sand"),
    "sunset_diamond": InstanceConcept("sunset", "diamond", "water"),
    "target_square": InstanceConcept("target", "square", "stone"),
    "split_triangle": InstanceConcept("split", "triangle", "night"),
    "framed_cross": InstanceConcept("framed", "cross", "wood"),
    "zigzag_heart": InstanceConcept("zigzag", "heart", "snow"),
    "striped_heart": InstanceConcept("striped", "heart", "stone", references=5),
}
_BARE = "_bare"
INSTANCES |= {
    name + _BARE: replace(INSTANCES[name], named_background=False)
    for name in ("striped_star", "checked_heart", "zigzag_heart", "framed_cross")
}
STYLES = tuple(HELD_OUT_STYLES)
_LATER = ("striped_heart",)
"""Concepts that came after the styles; the place in this order is a concept's seed, so new ones stand last."""
_PLACES = (("left", "big"), ("right", "small"), ("middle", "big"), ("bottom", "small"), ("top", "big"))
_STYLE_REFERENCES = 4


def _instance_references(concept: InstanceConcept, rng: np.random.Generator) -> list[tuple[Scene, str]]:
    references = []
    for position, size in _PLACES[: concept.references]:
        item = place(concept.shape, HELD_OUT_LOOKS[concept.look], None, position, size, rng)
        phase = rng.uniform(size=2)
        scene = Scene(concept.background, (item,), phase=(float(phase[0]), float(phase[1])))
        subject = subject_phrase(item, look="[V]", size=False, position=True)
        references.append(
            (scene, f"{subject}, {concept.background} background" if concept.named_background else subject)
        )
    return references


def _style_references(style: str, rng: np.random.Generator) -> list[tuple[Scene, str]]:
    references = []
    backgrounds = rng.permutation(BACKGROUNDS)
    shapes = rng.permutation(SHAPES)
    for index, (position, size) in enumerate(_PLACES[:_STYLE_REFERENCES]):
        colour = str(rng.choice(list(COLOURS)))
        item = place(str(shapes[index]), solid(colour), colour, position, size, rng)
        phase = rng.uniform(size=2)
        plain = Scene(str(backgrounds[index]), (item,), phase=(float(phase[0]), float(phase[1])))
        styled = Scene(plain.background, plain.objects, HELD_OUT_STYLES[style], None, plain.phase)
        references.append((styled, f"{full_caption(plain)}, in [V] style"))
    return references


def write_concepts(root: Path, *, seed: int = 0) -> list[Path]:
    """Write every shipped concept to `root/<name>/`; each depends on the seed and its own place only."""
    folders = []
    bare = [name for name in INSTANCES if name.endswith(_BARE)]
    order = [*(name for name in INSTANCES if name not in (*_LATER, *bare)), *STYLES, *_LATER]
    for name in (*order, *bare):
        rng = np.random.default_rng((seed, order.index(name.removesuffix(_BARE))))
        instance = INSTANCES.get(name)
        references = _instance_references(instance, rng) if instance else _style_references(name, rng)
        images = render([scene for scene, _ in references]).images_BCHW
        with atomic_folder(root / name) as folder:
            lines = []
            for index, ((_, text), image) in enumerate(zip(references, images, strict=True), 1):
                pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
                lines.append(json.dumps({"file_name": f"{index:02d}.png", "text": text}) + "\n")
            (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
            facts = {
                "name": name,
                "kind": "instance" if instance else "style",
                "class_word": instance.shape if instance else "style",
                "license": _LICENSE,
                "source": f"rendered by components.world.concepts, seed {seed}",
            }
            (folder / "concept.yaml").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
        (root / name / "SHA256SUMS").unlink()  # DVC versions the folder
        folders.append(root / name)
    return folders
