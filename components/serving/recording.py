"""The picture that travels with a model: what it drew when it was evaluated, and from what.

Whoever loads the model can draw it again and see that it is the model that was judged.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.errors import InvalidInput
from components.files import write_json
from components.serving.requests import ImageRequest, read_request

REQUEST, IMAGE = "request.json", "image.png"


@dataclass(frozen=True)
class Recording:
    """A request and the picture that it gave, (H, W, 3) of 8 bits."""

    request: ImageRequest
    picture: NDArray[np.uint8]


def write_recording(folder: Path, request: ImageRequest, image: Path) -> Path:
    """Write a recording into a new folder.

    Args:
        image: the PNG file that the request gave.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(image, folder / IMAGE)
    write_json(folder / REQUEST, request.model_dump(mode="json"))
    return folder


def read_recording(folder: Path) -> Recording:
    """Read a recording.

    Raises:
        InvalidInput: a file is missing or malformed.
    """
    try:
        content = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        return Recording(read_request(content), picture(folder / IMAGE))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"not a recording: {error}", file=folder) from error


def picture(png: Path | bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG file, (H, W, 3)."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png) as image:
        return np.asarray(image.convert("RGB"))


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, int]:
    """Mean and largest absolute difference of two pictures, in levels of 255; infinite where sizes differ."""
    if first.shape != second.shape:
        return float("inf"), 255
    apart = np.abs(first.astype(np.int16) - second.astype(np.int16))
    return float(apart.mean()), int(apart.max())
