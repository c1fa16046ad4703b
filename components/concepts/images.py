"""Safe decoding of reference images.

What is accepted: PNG, JPEG and WebP with one frame and 8 bits per channel. Grayscale and palette images become RGB,
transparency is laid on white, the EXIF orientation is applied. CMYK, 16 bits, animations and other formats are
refused with the mend, since a silent conversion would teach the model other colours than a person sees.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from components.concepts.paths import MAXIMUM_IMAGE_BYTES, read_bytes
from components.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

MAXIMUM_PIXELS = 64 * 2**20
FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}
"""Accepted formats and the suffixes that belong to them."""
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes of more than 8 bits per channel."""
# Formats that are opened only to say by name what is wrong; all others are "not an image".
_NAMED = ("GIF", "BMP", "TIFF", "ICO", "PPM")


@dataclass(frozen=True)
class Header:
    """What an image says of itself before a pixel is decoded.

    Attributes:
        format: `PNG`, `JPEG` or `WEBP`, or the name of a format that is not accepted.
        mode: Pillow's mode.
        width: stored width in pixels, before the EXIF orientation is applied.
        height: stored height in pixels.
        frames: number of frames of an animation.
        bits: bits per channel.
        orientation: EXIF orientation, 1 if none.
    """

    format: str
    mode: str
    width: int
    height: int
    frames: int
    bits: int
    orientation: int


def read_header(content: bytes) -> Header:
    """Read an image's header; no pixel is decoded.

    Raises:
        InvalidInput: no image, or one so large that it is a decompression bomb; the caller adds the file.
    """
    with _opened(content) as image:
        return _header(image, content)


def decode(content: bytes) -> Image.Image:
    """Decode an image to RGB, turned as its EXIF orientation says.

    Raises:
        InvalidInput: not an accepted image (module docstring) or damaged; the caller adds the file.
    """
    with _opened(content) as image:
        problem = header_problem(_header(image, content))
        if problem:
            raise InvalidInput(problem[0], mend=problem[1])
        try:
            if image.format == "PNG":
                _check_png(content)
            image.load()
            turned = ImageOps.exif_transpose(image)
            return _to_rgb(turned)
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
            raise InvalidInput(
                f"the image is truncated or damaged: {error}", mend="replace the file by an intact copy"
            ) from error


def header_problem(header: Header) -> tuple[str, str] | None:
    """Why an image with this header is not accepted, and the mend; None if it is."""
    if header.frames > 1:
        return f"an animated {header.format} with {header.frames} frames", "save one frame as PNG"
    if header.format not in FORMATS:
        return f"a {header.format} image", "save it as PNG or JPEG"
    if header.mode == "CMYK":
        return "a CMYK image, made for print", "convert it to sRGB and save it as PNG or JPEG"
    if header.bits > 8:
        return f"{header.bits} bits per channel", "save it with 8 bits per channel"
    if header.mode not in MODES:
        return f"the colour mode {header.mode}", "convert it to sRGB and save it as PNG or JPEG"
    return None


def read_image(path: Path) -> Image.Image:
    """Read and decode an image file to RGB, turned as its EXIF orientation says.

    Raises:
        InvalidInput: the file is no plain file or no accepted image; file and mend are named.
    """
    content = read_bytes(path, limit=MAXIMUM_IMAGE_BYTES)
    try:
        return decode(content)
    except InvalidInput as error:
        raise InvalidInput(error.problem, file=path, field=error.field, mend=error.mend) from error


def load_image(path: Path, side: int) -> Tensor:
    """An image as the models get it: (3, side, side), float32 in [-1, 1].

    The short side is resized to `side` (Lanczos, anti-aliased), the centre is cut out.

    Raises:
        InvalidInput: as `read_image`.
    """
    import torch

    image = ImageOps.fit(read_image(path), (side, side), method=Image.Resampling.LANCZOS)
    values_HWC = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values_HWC.transpose(2, 0, 1).copy())


def _opened(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own limit only warns up to twice its size; ours stands below it and is an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=(*FORMATS, *_NAMED))
    except Image.DecompressionBombError as error:
        raise _bomb(str(error)) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise InvalidInput(
            "the content is not an image", mend="replace it by a PNG, JPEG or WebP image; a new name makes no image"
        ) from error
    if image.width * image.height > MAXIMUM_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        image.close()
        raise _bomb(size)
    return image


def _check_png(content: bytes) -> None:
    # Reading the pixels stops at the last row and checks no sum; a flipped bit would pass
    with _opened(content) as image:
        image.verify()


def _bomb(size: str) -> InvalidInput:
    return InvalidInput(
        f"{size}: more than {MAXIMUM_PIXELS // 2**20} megapixels when decoded",
        mend="scale the image down, 2048 pixels a side are plenty",
    )


def _header(image: Image.Image, content: bytes) -> Header:
    name = image.format or "?"
    # Phones store a second picture behind the photo ("MPO"); the photo itself is a plain JPEG
    frames = 1 if name == "MPO" else int(getattr(image, "n_frames", 1))
    bits = 8
    if image.mode in DEEP_MODES:
        bits = 16 if image.mode.startswith("I;16") else 32
    if name == "PNG":
        bits = max(bits, content[24])  # IHDR: Pillow reads 16-bit colour as 8-bit without saying so
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        orientation = 1  # unreadable EXIF says nothing about the pixels
    return Header("JPEG" if name == "MPO" else name, image.mode, image.width, image.height, frames, bits, orientation)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")
