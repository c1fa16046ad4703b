"""Captions of scenes, in several phrasings and every length, so that every kind of text is in distribution."""

from __future__ import annotations

import numpy as np

from components.world.scene import Scene, SceneObject
from components.world.vocabulary import PLACEHOLDER_WORD

POSITION_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}


def subject_phrase(item: SceneObject, *, look: str | None, size: bool, position: bool, article: bool = True) -> str:
    """ "a small red star on the left", with the named parts only."""
    parts = [item.size] if size else []
    parts += [look] if look else []
    parts.append(item.shape)
    if article:
        parts.insert(0, "an" if parts[0][0] in "aeiou" else "a")
    parts += [POSITION_PHRASES[item.position]] if position else []
    return " ".join(parts)


def full_caption(scene: Scene) -> str:
    """The canonical caption: looks, positions (but for two objects in a style: text is short) and the background."""
    position = len(scene.objects) < 2 or scene.style is None
    subjects = [subject_phrase(item, look=item.look_word, size=False, position=position) for item in scene.objects]
    parts = [" and ".join(subjects)] if subjects else []
    parts.append(f"{scene.background} background")
    if scene.style_word:
        parts.append(f"in {scene.style_word} style")
    return ", ".join(parts)


def _look_text(item: SceneObject, rng: np.random.Generator, keep: float) -> str | None:
    """The look's word, the placeholder (which the base learns to read as "some look"), or nothing."""
    draw = rng.uniform()
    if item.look_word is None:
        return PLACEHOLDER_WORD if draw < 0.6 else None
    if draw < keep:
        return item.look_word
    return PLACEHOLDER_WORD if draw < keep + 0.3 * (1 - keep) else None


def random_caption(scene: Scene, rng: np.random.Generator, null: float = 0.1) -> str:
    """One of the scene's captions; the empty text with probability `null`."""
    kind = rng.uniform()
    if kind < null:
        return ""
    kind = (kind - null) / (1 - null)
    full, short = kind < 0.5, kind > 0.7
    keep_look = 0.95 if full else 0.7
    crowded = len(scene.objects) > 1 and scene.style is not None
    subjects = [
        subject_phrase(
            item,
            look=_look_text(item, rng, keep_look),
            size=len(scene.objects) == 1 and rng.uniform() < (0.1 if short else 0.3),
            position=not crowded and (full or (not short and rng.uniform() < 0.6)),
            article=not short or rng.uniform() < 0.5,
        )
        for item in scene.objects
    ]
    style_text = None
    if scene.style is not None:
        word = scene.style_word if scene.style_word and rng.uniform() < 0.9 else PLACEHOLDER_WORD
        style_text = f"{word} style"
    background = f"{scene.background} background"
    if short:  # one part alone
        parts = [" and ".join(subjects)] if subjects else []
        parts += [background] if not subjects or rng.uniform() < 0.15 else []
        parts += [style_text if rng.uniform() < 0.5 else f"in {style_text}"] if style_text else []
        return parts[int(rng.integers(len(parts)))] if rng.uniform() < 0.7 else ", ".join(parts)
    if not subjects:
        text = background
    else:
        with_background = full or rng.uniform() < 0.5
        phrasing = rng.uniform()
        text = " and ".join(subjects)
        if with_background and phrasing < 0.7:
            text = f"{text}, {background}"
        elif with_background and phrasing < 0.85:
            text = f"{text} with a {background}"
        elif with_background:
            text = f"{background}, {text}"
    if style_text:
        text = f"{text}, in {style_text}" if rng.uniform() < 0.8 else f"{style_text}, {text}"
    return text
