"""The renderer against closed forms and a brute-force supersampled rasteriser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from components.world.render import render
from components.world.scene import CENTRES, RADII, Scene, SceneObject, random_scene
from components.world.vocabulary import BACKGROUNDS, HELD_OUT_LOOKS, HELD_OUT_STYLES, SHAPES, Look, solid

RED = solid("red")


def one(shape: str, *, look: Look = RED, size: str = "big", position: str = "middle", angle: float = 0.0) -> Scene:
    return Scene("snow", (SceneObject(shape, look, "red", position, size, (0.0, 0.0), angle),))


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.95**2),
        ("square", 1.64**2),
        ("diamond", 2 * 0.72 * 1.08),
        ("cross", 4 * 0.98 * 0.66 - 0.66**2),
        ("ring", math.pi * (0.96**2 - 0.40**2)),
        ("triangle", 3 * math.sqrt(3) / 4 * 1.2**2),
        ("star", 5 * 1.15 * 0.48 * math.sin(math.pi / 5)),
    ],
)
def test_a_mask_covers_the_area_that_geometry_says(shape: str, area: float) -> None:
    for size, radius in RADII.items():
        covered = float(render([one(shape, size=size)]).masks_BNHW.sum()) * (2 / 64) ** 2
        assert covered == pytest.approx(area * radius**2, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_keeps_the_area_and_sampling_finer_agrees(shape: str) -> None:
    coarse = render([one(shape, angle=0.0), one(shape, angle=0.17)]).masks_BNHW[:, 0]
    fine = render([one(shape)], side=512).masks_BNHW[0, 0]
    assert float(coarse[1].sum()) == pytest.approx(float(coarse[0].sum()), rel=0.03)
    boxed = torch.nn.functional.avg_pool2d(fine[None, None], 8)[0, 0]
    assert float((coarse[0] - boxed).abs().max()) < 0.35
    assert float((coarse[0] - boxed).abs().mean()) < 0.01


@pytest.mark.parametrize("position", CENTRES)
def test_an_object_stands_where_its_position_says(position: str) -> None:
    mask = render([one("circle", size="small", position=position)]).masks_BNHW[0, 0]
    axis = (torch.arange(64) + 0.5) / 64 * 2 - 1
    centre = (float((mask.sum(0) * axis).sum() / mask.sum()), float((mask.sum(1) * axis).sum() / mask.sum()))
    assert centre == pytest.approx(CENTRES[position], abs=0.02)


def test_an_object_shows_its_look_inside_and_the_background_outside() -> None:
    plain, worn = render([Scene("water", ()), Scene("water", one("square").objects)]).images_BCHW
    mask = render([one("square")]).masks_BNHW[0, 0]
    inside = ((worn + 1) / 2)[:, mask == 1]
    assert torch.allclose(inside, torch.tensor(RED.colours[0]).view(3, 1).expand_as(inside), atol=1e-6)
    assert torch.equal(worn[:, mask == 0], plain[:, mask == 0])


def test_the_first_object_covers_the_second() -> None:
    top = SceneObject("square", RED, "red", "middle", "big")
    under = SceneObject("square", solid("blue"), "blue", "middle", "small")
    masks = render([Scene("snow", (top, under))]).masks_BNHW[0]
    assert float(masks[0].sum()) > 0
    assert float(masks[1].sum()) == pytest.approx(0, abs=1e-5)


def test_pictures_do_not_depend_on_the_batch_they_are_drawn_in() -> None:
    scenes = [random_scene(np.random.default_rng(index)) for index in range(24)]
    together, alone = render(scenes), [render([scene]) for scene in scenes]
    assert torch.equal(together.images_BCHW, torch.cat([item.images_BCHW for item in alone]))
    assert torch.equal(together.masks_BNHW, torch.cat([item.masks_BNHW for item in alone]))
    assert float(together.images_BCHW.abs().max()) <= 1


def test_backgrounds_looks_and_styles_can_be_told_apart() -> None:
    scenes = [Scene(name, ()) for name in BACKGROUNDS]
    scenes += [one("square", look=look) for look in HELD_OUT_LOOKS.values()]
    scenes += [Scene("stone", one("star").objects, style) for style in HELD_OUT_STYLES.values()]
    images = render(scenes).images_BCHW.flatten(1)
    for group in (images[:8], images[8:16], images[16:]):
        distances = torch.cdist(group, group, p=1) / group.shape[1]
        assert float((distances + torch.eye(len(group)) * 9).min()) > 0.01
