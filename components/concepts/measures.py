"""What is measured on the pixels of a reference image; pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

Array = NDArray[np.float64]

_HASH_SIDE, _HASH_ROWS = 32, 8
_SHARPNESS_SIDE = 512
_BACKGROUND_SIDE, _BACKGROUND_BORDER, _BACKGROUND_LEVELS = 64, 8, 6


def perceptual_hash(image: Image.Image) -> str:
    """64 bits (16 hex digits) that change little when an image is scaled, recompressed or slightly recoloured.

    The signs of the 8 x 8 lowest frequencies of the DCT-II of the 32 x 32 grayscale image against their median; the
    mean of the image (frequency 0, 0) takes part as a coefficient of value 0, so that brightness does not count.
    """
    grey_HW = _grey(image.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS))
    low = fft.dctn(grey_HW, norm="ortho")[:_HASH_ROWS, :_HASH_ROWS]
    low[0, 0] = 0.0
    bits = (low > np.median(low)).ravel()
    return np.packbits(bits).tobytes().hex()


def hamming(first: str, second: str) -> int:
    """How many bits two perceptual hashes differ in, 0 to 64."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grayscale image (values 0 to 255), long side scaled down to at most 512."""
    scale = _SHARPNESS_SIDE / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    return float(ndimage.laplace(_grey(image), mode="nearest").var())


def background(image: Image.Image) -> Array:
    """The colour histogram of the image's border, (216,), sum 1: six levels a channel on the outer eighth."""
    small = np.asarray(image.resize((_BACKGROUND_SIDE, _BACKGROUND_SIDE), Image.Resampling.BOX), dtype=np.int64)
    border = np.ones((_BACKGROUND_SIDE, _BACKGROUND_SIDE), dtype=bool)
    border[_BACKGROUND_BORDER:-_BACKGROUND_BORDER, _BACKGROUND_BORDER:-_BACKGROUND_BORDER] = False
    levels = small[border] * _BACKGROUND_LEVELS // 256
    index = (levels[:, 0] * _BACKGROUND_LEVELS + levels[:, 1]) * _BACKGROUND_LEVELS + levels[:, 2]
    counts = np.bincount(index, minlength=_BACKGROUND_LEVELS**3).astype(np.float64)
    return np.asarray(counts / counts.sum())


def background_hash(histogram: Array) -> str:
    """A histogram in 216 hex digits: the square root of each share in 16 steps."""
    return "".join(f"{step:x}" for step in np.minimum(np.sqrt(histogram) * 16, 15).astype(int))


def background_similarity(first: Array, second: Array) -> float:
    """The intersection of two histograms: 1 for equal borders, 0 for borders that share no colour."""
    return float(np.minimum(first, second).sum())


def _grey(image: Image.Image) -> Array:
    return np.asarray(image.convert("L"), dtype=np.float64)
