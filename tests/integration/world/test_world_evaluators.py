"""The shipped evaluators on renders whose truth is known: each metric tells what it is there to tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from components.evaluation import fidelity, leakage, preservation
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.evaluation.pictures import Picture, to_pictures
from components.evaluation.segmentation import paint, seg_cons
from components.evaluation.segmenters import masks
from components.settings import load_profile
from components.world.captions import full_caption
from components.world.render import render
from components.world.scene import Scene, place
from components.world.vocabulary import HELD_OUT_LOOKS, HELD_OUT_STYLES, Look, solid


@pytest.fixture(scope="module")
def evaluators(repository: Path) -> Evaluators:
    settings = load_profile(str(repository / "profiles" / "tiny.yaml")).evaluation.evaluators
    return load_evaluators(settings, repository, torch.device("cpu"))


def scene(background: str, position: str, seed: int, look: Look | None = None, shape: str = "star") -> Scene:
    rng = np.random.default_rng(seed)
    worn, word = (look, None) if look is not None else (solid("red"), "red")
    item = place(shape, worn, word, position, "big", rng)
    return Scene(background, (item,), phase=(float(rng.uniform()), float(rng.uniform())))


def pictures(*scenes: Scene) -> list[Picture]:
    return to_pictures(render(list(scenes)).images_BCHW)


PLACES = ("left", "right", "top", "bottom")
STRIPED, DOTTED = HELD_OUT_LOOKS["striped"], HELD_OUT_LOOKS["dotted"]
REFERENCES = pictures(*(scene("brick", where, seed, STRIPED) for seed, where in enumerate(PLACES)))


def test_the_concept_elsewhere_is_more_faithful_than_another_thing_before_the_same_background(evaluators) -> None:
    """What masks are for: on whole pictures the background counts, on the subject alone it does not."""
    concept = pictures(*(scene("snow", where, 10 + seed, STRIPED) for seed, where in enumerate(PLACES)))
    impostor = pictures(*(scene("brick", where, 20 + seed, DOTTED, "circle") for seed, where in enumerate(PLACES)))

    def score(shown: list[Picture]) -> float:
        layouts = [
            fidelity.find_layouts(batch, evaluators.segmenter, evaluators.clip, "star") for batch in (shown, REFERENCES)
        ]
        subjects = [fidelity.subjects(batch, found) for batch, found in zip((shown, REFERENCES), layouts, strict=True)]
        encoded = [evaluators.dino.encode_images(batch) for batch in subjects]
        return float(fidelity.cosine_to_references(*encoded).mean())

    assert score(concept) > score(impostor) + 0.2
    assert score(REFERENCES) >= score(concept)


def test_a_picture_fits_its_own_caption_best(evaluators) -> None:
    scenes = [scene(background, where, 3) for background, where in zip(("snow", "grass", "wood"), PLACES, strict=False)]
    images = evaluators.clip.encode_images(pictures(*scenes))
    texts = evaluators.clip.encode_texts([full_caption(one) for one in scenes])
    right = preservation.clip_t(images, texts)
    for shift in (1, 2):
        assert (right > preservation.clip_t(images, np.roll(texts, shift, axis=0))).all()


def test_regions_follow_the_objects_and_not_the_colours(evaluators) -> None:
    first, recoloured, moved = (
        scene("snow", "left", 5),
        scene("snow", "left", 5, STRIPED),
        scene("snow", "right", 5),
    )
    parts = [paint(found, (64, 64)) for found in masks(evaluators.segmenter, pictures(first, recoloured, moved))]
    assert seg_cons(parts[0], parts[0]) == 100
    assert seg_cons(parts[0], parts[1]) > 90 > seg_cons(parts[0], parts[2])


def test_leaked_backgrounds_are_seen_by_area_and_in_features(evaluators) -> None:
    asked = pictures(*(scene("snow", where, 30 + seed, STRIPED) for seed, where in enumerate(PLACES)))
    leaked = pictures(*(scene("brick", where, 30 + seed, STRIPED) for seed, where in enumerate(PLACES)))

    def layouts(shown: list[Picture]) -> list[fidelity.Layout]:
        return fidelity.find_layouts(shown, evaluators.segmenter, evaluators.clip, "star")

    background = leakage.common_background(layouts(REFERENCES))
    assert background == "brick"
    assert leakage.background_share(layouts(asked), background).max() < 0.05
    assert leakage.background_share(layouts(leaked), background).min() > 0.95
    clean, leaky = (
        leakage.background_similarity(evaluators.dino, shown, layouts(shown), REFERENCES, layouts(REFERENCES))
        for shown in (asked, leaked)
    )
    assert (leaky > clean + 0.1).all(), "the pictures of a pair differ in their background alone"
    assert leaky.min() > clean.max(), "a bound can be drawn between them, wherever the object stands"


def test_the_preference_models_and_the_style_encoder_judge_as_people_would(evaluators) -> None:
    """Clean before damaged, the right caption before a wrong one, one style before another."""
    from components.world.pretraining.judges.corruptions import corrupted

    rng = np.random.default_rng(0)
    scenes = [scene(str(rng.choice(["snow", "grass", "wood", "sand"])), str(rng.choice(PLACES)), n) for n in range(24)]
    clean, texts = render(scenes).images_BCHW, [full_caption(one) for one in scenes]
    damaged = corrupted(clean, rng)
    wrong = [full_caption(dataclasses.replace(one, background="night")) for one in scenes]
    assert set(evaluators.preferences) == {"hps", "pickscore"}
    for name, scorer in evaluators.preferences.items():
        right = scorer.score(to_pictures(clean), texts)
        assert (right > scorer.score(to_pictures(damaged), texts)).mean() >= 0.75, name
        assert (right > scorer.score(to_pictures(clean), wrong)).mean() >= 0.75, name
    worn = [
        pictures(*(dataclasses.replace(one, style=style) for one in scenes[:6])) for style in HELD_OUT_STYLES.values()
    ]
    encoded = [evaluators.style.encode_images(batch) for batch in worn]
    same = np.mean([fidelity.cosine_among(batch) for batch in encoded])
    other = np.mean([first @ second.T for i, first in enumerate(encoded) for second in encoded[i + 1 :]])
    assert same > other + 0.2
