"""Pictures on disk: lossless PNG, and the one conversion between pixels and the models' range.

A picture is a (H, W, 3) uint8 array. Every metric is computed on the picture as stored, so that a figure can be
recomputed from the files of a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Picture = NDArray[np.uint8]


def to_pictures(images_BCHW: Tensor) -> list[Picture]:
    """Pixels in [-1, 1], clipped and rounded to 8 bits."""
    scaled = ((images_BCHW.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).contiguous().numpy())


def to_tensor(pictures: Sequence[Picture]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]; all pictures have one size."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture, lossless; it takes its name only when it is whole.

    It is not forced to the disk one by one, which would cost more than drawing small pictures: whoever keeps pictures
    keeps their digests too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(picture, "RGB").save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_png(path: Path) -> Picture:
    """Read a picture that `write_png` wrote."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
