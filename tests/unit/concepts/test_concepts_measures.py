"""The measures tell apart what they are to tell apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from components.concepts import measures


@pytest.fixture
def scene() -> Image.Image:
    """A smooth random landscape of colour with an edge in it."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    image.paste((20, 200, 40), (80, 90, 170, 200))
    return image


def _jpeg(image: Image.Image) -> Image.Image:
    image.save(stream := io.BytesIO(), "JPEG", quality=40)
    return Image.open(stream).convert("RGB")


def test_a_perceptual_hash_survives_scaling_recompression_and_brightness(scene: Image.Image) -> None:
    own = measures.perceptual_hash(scene)
    assert len(own) == 16
    brighter = scene.point(lambda value: int(value * 0.8 + 30))
    for changed in (scene.resize((100, 100)), _jpeg(scene), brighter):
        assert measures.hamming(own, measures.perceptual_hash(changed)) <= 6


def test_a_perceptual_hash_differs_between_images(scene: Image.Image) -> None:
    own = measures.perceptual_hash(scene)
    for other in (scene.rotate(90), scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        assert measures.hamming(own, measures.perceptual_hash(other)) > 16


def test_hamming_counts_bits() -> None:
    assert measures.hamming("0000000000000000", "8000000000000001") == 2
    assert measures.hamming("ffffffffffffffff", "0000000000000000") == 64


def test_sharpness_falls_with_blur_and_is_that_of_the_laplacian(scene: Image.Image) -> None:
    blurred = [measures.sharpness(scene.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 3, 8)]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[-1] < blurred[0] / 4
    checks = np.indices((16, 16)).sum(axis=0) % 2 * 255
    # inside a chessboard the Laplacian is +-4 x 255; at the borders a mirrored neighbour takes one of the four away
    counts = np.full((16, 16), 4.0)
    counts[[0, -1]] -= 1
    counts[:, [0, -1]] -= 1
    expected = np.where(checks == 0, counts, -counts) * 255
    assert measures.sharpness(Image.fromarray(checks.astype(np.uint8))) == pytest.approx(expected.var())


def test_backgrounds_are_alike_whatever_stands_before_them(scene: Image.Image) -> None:
    rng = np.random.default_rng(0)
    wall = rng.integers(90, 150, (64, 64, 3), dtype=np.uint8)
    other_wall = rng.permutation(wall.reshape(-1, 3)).reshape(64, 64, 3)
    first, second = Image.fromarray(wall), Image.fromarray(other_wall)
    first.paste((255, 0, 0), (10, 10, 30, 30))
    second.paste((0, 0, 255), (30, 30, 50, 50))
    similar = measures.background_similarity(measures.background(first), measures.background(second))
    different = measures.background_similarity(measures.background(first), measures.background(scene))
    assert measures.background(first).sum() == pytest.approx(1)
    assert similar > 0.8
    assert different < 0.4
    assert len(measures.background_hash(measures.background(first))) == 216
