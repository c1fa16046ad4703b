"""What a scene is, and how one is drawn at random.

Coordinates run from -1 (left, top) to 1 (right, bottom).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Look,
    Style,
    named_looks,
    named_styles,
    random_look,
    random_style,
    solid,
)

CENTRES = {"left": (-0.5, 0.0), "right": (0.5, 0.0), "top": (0.0, -0.5), "bottom": (0.0, 0.5), "middle": (0.0, 0.0)}
RADII = {"small": 0.29, "big": 0.43}


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        shape, position, size: words of the vocabulary.
        look: the appearance.
        look_word: the word that names the look, or None for a look without a name.
        offset: displacement of the centre from the position's.
        angle: rotation, radians.
    """

    shape: str
    look: Look
    look_word: str | None
    position: str
    size: str
    offset: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background, no, one or two objects, and perhaps a style over all.

    Attributes:
        phase: two numbers in [0, 1) that shift the background's texture.
        style_word: the word that names the style, or None for a style without a name.
    """

    background: str
    objects: tuple[SceneObject, ...]
    style: Style | None = None
    style_word: str | None = None
    phase: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class SceneMix:
    """How often what is drawn; the rest of the objects wear plain colours."""

    two_objects: float = 0.15
    no_object: float = 0.03
    named_look: float = 0.42
    unnamed_look: float = 0.12
    named_style: float = 0.10
    unnamed_style: float = 0.04


def random_object(rng: np.random.Generator, mix: SceneMix, position: str) -> SceneObject:
    """An object at a position, the rest of it at random."""
    draw = rng.uniform()
    if draw < mix.named_look:
        word: str | None = str(rng.choice(list(named_looks())))
        look = named_looks()[str(word)]
    elif draw < mix.named_look + mix.unnamed_look:
        word, look = None, random_look(rng)
    else:
        word = str(rng.choice(list(COLOURS)))
        look = solid(word)
    return place(str(rng.choice(SHAPES)), look, word, position, str(rng.choice(SIZES)), rng)


def place(
    shape: str, look: Look, look_word: str | None, position: str, size: str, rng: np.random.Generator
) -> SceneObject:
    """An object with a small random displacement and rotation, as all of the world's have."""
    dx, dy = rng.uniform(-0.05, 0.05, size=2)
    return SceneObject(shape, look, look_word, position, size, (float(dx), float(dy)), float(rng.uniform(-0.2, 0.2)))


def random_scene(rng: np.random.Generator, mix: SceneMix | None = None) -> Scene:
    """A scene at random."""
    mix = mix or SceneMix()
    draw = rng.uniform()
    positions: tuple[str, ...]
    if draw < mix.no_object:
        positions = ()
    elif draw < mix.no_object + mix.two_objects:
        pair = ("left", "right") if rng.uniform() < 0.5 else ("top", "bottom")
        positions = pair if rng.uniform() < 0.5 else pair[::-1]
    else:
        positions = (str(rng.choice(POSITIONS)),)
    draw = rng.uniform()
    style, style_word = None, None
    if draw < mix.named_style:
        style_word = str(rng.choice(list(named_styles())))
        style = named_styles()[style_word]
    elif draw < mix.named_style + mix.unnamed_style:
        style = random_style(rng)
    phase = rng.uniform(size=2)
    return Scene(
        str(rng.choice(BACKGROUNDS)),
        tuple(random_object(rng, mix, position) for position in positions),
        style,
        style_word,
        (float(phase[0]), float(phase[1])),
    )
