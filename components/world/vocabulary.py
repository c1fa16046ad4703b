"""Every word of the world, and the named looks and styles that the base model is taught.

Looks and styles used as concepts (`HELD_OUT_LOOKS`, `HELD_OUT_STYLES`) have no word: the base never sees them.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
BACKGROUNDS = ("brick", "snow", "grass", "sand", "water", "wood", "stone", "night")
POSITIONS = ("left", "right", "top", "bottom", "middle")
SIZES = ("small", "big")
COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.88, 0.16),
    "green": (0.10, 0.55, 0.22),
    "blue": (0.13, 0.27, 0.85),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.98, 0.52, 0.74),
    "black": (0.07, 0.07, 0.08),
}
PATTERNS = ("solid", "stripes", "checks", "dots", "gradient", "radial", "rings", "halves", "outline", "zigzag")
OVERLAYS = ("plain", "scanlines", "halftone", "vignette", "pixels", "frame")
PLACEHOLDER_WORD = "sks"
FUNCTION_WORDS = (
    "a",
    "an",
    "and",
    "at",
    "in",
    "of",
    "on",
    "the",
    "to",
    "with",
    "background",
    "style",
    "photo",
    ",",
    ".",
)
NAMED_LOOK_COUNT = 200
NAMED_STYLE_COUNT = 24
_WORLD_SEED = 2603


@dataclass(frozen=True)
class Look:
    """A parametric appearance of an object.

    Attributes:
        pattern: one of `PATTERNS`.
        colours: two RGB colours in [0, 1].
        frequency: repeats over the object's radius.
        angle: direction of the pattern, radians.
    """

    pattern: str
    colours: tuple[RGB, RGB]
    frequency: float = 2.0
    angle: float = 0.0


@dataclass(frozen=True)
class Style:
    """A parametric appearance of the whole image: a two-colour tone map and an overlay.

    Attributes:
        dark, light: RGB that luminance 0 and 1 are mapped to.
        strength: share of the tone map in the result, in [0, 1].
        overlay: one of `OVERLAYS`.
    """

    dark: RGB
    light: RGB
    strength: float
    overlay: str


def solid(colour: str) -> Look:
    """The look of a plain named colour."""
    return Look("solid", (COLOURS[colour], COLOURS[colour]))


# Concepts of the project: no word of the vocabulary names one of these.
HELD_OUT_LOOKS: dict[str, Look] = {
    "striped": Look("stripes", ((0.93, 0.15, 0.35), (0.10, 0.80, 0.78)), 1.6, 0.9),
    "checked": Look("checks", ((0.12, 0.12, 0.16), (0.99, 0.80, 0.10)), 1.4, 0.5),
    "dotted": Look("dots", ((0.35, 0.10, 0.55), (0.98, 0.70, 0.20)), 1.5, 0.3),
    "sunset": Look("gradient", ((0.98, 0.30, 0.55), (0.99, 0.88, 0.25)), 1.0, 1.57),
    "target": Look("rings", ((0.90, 0.10, 0.10), (0.15, 0.15, 0.60)), 1.5, 0.0),
    "split": Look("halves", ((0.10, 0.65, 0.35), (0.95, 0.40, 0.70)), 1.0, 0.8),
    "framed": Look("outline", ((0.15, 0.85, 0.95), (0.60, 0.05, 0.30)), 1.0, 0.0),
    "zigzag": Look("zigzag", ((0.10, 0.30, 0.90), (0.70, 0.95, 0.20)), 1.5, 0.0),
}
HELD_OUT_STYLES: dict[str, Style] = {
    "blueprint": Style((0.05, 0.15, 0.50), (0.75, 0.90, 1.00), 1.0, "frame"),
    "amber_screen": Style((0.12, 0.05, 0.00), (1.00, 0.70, 0.15), 1.0, "scanlines"),
    "rose_print": Style((0.45, 0.05, 0.25), (1.00, 0.88, 0.80), 0.9, "halftone"),
    "moss_pixels": Style((0.05, 0.20, 0.12), (0.85, 0.95, 0.55), 0.85, "pixels"),
}


def look_distance(a: Look, b: Look) -> float:
    """0 for equal looks, >= 1 for looks of different pattern; else the colour distance, plus that of the geometry."""
    if a.pattern != b.pattern:
        return 1.0
    colours = float(np.abs(np.asarray(a.colours) - np.asarray(b.colours)).mean())
    return colours + 0.15 * abs(a.frequency - b.frequency) + 0.1 * abs(float(np.sin(a.angle - b.angle)))


def random_look(rng: np.random.Generator) -> Look:
    """A look from the whole continuous family, never close to a held-out one nor white (which snow would hide)."""
    while True:
        first, second = (_random_colour(rng) for _ in range(2))
        if np.abs(np.subtract(first, second)).sum() < 0.7:
            continue
        look = Look(
            str(rng.choice(PATTERNS[1:])), (first, second), float(rng.uniform(1.0, 2.2)), float(rng.uniform(0, np.pi))
        )
        if min(look_distance(look, held_out) for held_out in HELD_OUT_LOOKS.values()) > 0.15:
            return look


def random_style(rng: np.random.Generator) -> Style:
    """A style from the whole continuous family, never close to a held-out one."""
    while True:
        hue = rng.uniform()
        dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.05, 0.5))
        light = colorsys.hsv_to_rgb((hue + rng.uniform(-0.3, 0.3)) % 1, rng.uniform(0.1, 0.7), 1.0)
        style = Style(dark, light, float(rng.uniform(0.6, 1.0)), str(rng.choice(OVERLAYS)))
        if min(_style_distance(style, held_out) for held_out in HELD_OUT_STYLES.values()) > 0.15:
            return style


def _style_distance(a: Style, b: Style) -> float:
    if a.overlay != b.overlay:
        return 1.0
    return float(np.abs(np.asarray([a.dark, a.light]) - np.asarray([b.dark, b.light])).mean())


def _random_colour(rng: np.random.Generator) -> RGB:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.55, 1.0), rng.uniform(0.15, 1.0))


def _nonsense_words(count: int, rng: np.random.Generator) -> list[str]:
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(syllables, size=3))
        if word not in words:
            words.append(word)
    return words


@functools.cache
def named_looks() -> dict[str, Look]:
    """Word -> look, for every look that the base is taught by name; well apart from each other."""
    rng = np.random.default_rng(_WORLD_SEED)
    words = _nonsense_words(NAMED_LOOK_COUNT + NAMED_STYLE_COUNT, rng)[:NAMED_LOOK_COUNT]
    looks: list[Look] = []
    while len(looks) < len(words):
        look = random_look(rng)
        if min((look_distance(look, other) for other in looks), default=1.0) > 0.12:
            looks.append(look)
    return dict(zip(words, looks, strict=True))


@functools.cache
def named_styles() -> dict[str, Style]:
    """Word -> style, for every style that the base is taught by name."""
    rng = np.random.default_rng(_WORLD_SEED)
    words = _nonsense_words(NAMED_LOOK_COUNT + NAMED_STYLE_COUNT, rng)[NAMED_LOOK_COUNT:]
    rng = np.random.default_rng(_WORLD_SEED + 1)
    styles: list[Style] = []
    while len(styles) < len(words):
        style = random_style(rng)
        if min((_style_distance(style, other) for other in styles), default=1.0) > 0.12:
            styles.append(style)
    return dict(zip(words, styles, strict=True))


@functools.cache
def words() -> tuple[str, ...]:
    """The closed vocabulary, sorted within its groups: what the tokenizers know."""
    return (
        *FUNCTION_WORDS,
        PLACEHOLDER_WORD,
        *SHAPES,
        *COLOURS,
        *BACKGROUNDS,
        *POSITIONS,
        *SIZES,
        *named_looks(),
        *named_styles(),
    )
