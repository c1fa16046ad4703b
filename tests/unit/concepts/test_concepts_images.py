"""Safe decoding: what is accepted comes out as it should, what is not is refused with the mend."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from components.concepts import images
from components.concepts.images import load_image, read_image
from components.errors import InvalidInput

ORIENTATION = 0x0112


def _two_colours() -> Image.Image:
    """Red above, blue below, 64 wide and 32 high."""
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 16, 63, 31), fill=(0, 0, 255))
    return image


def _refused(path: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_image(path)
    assert caught.value.file == path
    assert caught.value.mend
    return caught.value


@pytest.mark.parametrize(
    ("orientation", "top", "bottom", "size"),
    [
        (1, (255, 0, 0), (0, 0, 255), (64, 32)),
        (3, (0, 0, 255), (255, 0, 0), (64, 32)),
        (6, None, None, (32, 64)),
        (8, None, None, (32, 64)),
    ],
)
def test_the_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, top: tuple[int, ...] | None, bottom: tuple[int, ...] | None, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    _two_colours().save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == size
    left, right = image.getpixel((0, image.height // 2)), image.getpixel((image.width - 1, image.height // 2))
    if orientation == 6:  # the stored top is the right side
        assert (left, right) == ((0, 0, 255), (255, 0, 0))
    elif orientation == 8:
        assert (left, right) == ((255, 0, 0), (0, 0, 255))
    else:
        assert (image.getpixel((5, 0)), image.getpixel((5, image.height - 1))) == (top, bottom)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_modes_become_rgb_unchanged(tmp_path: Path, mode: str) -> None:
    image = _two_colours().convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read.mode, read.getpixel((0, 0)), read.getpixel((7, 0))) == ("RGB", (10, 10, 10), (255, 255, 255))


def test_a_transparent_palette_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = _two_colours().convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    read = read_image(tmp_path / "a.png")
    assert (read.getpixel((0, 0)), read.getpixel((0, 31))) == ((255, 255, 255), (0, 0, 255))


def test_cmyk_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (64, 64)).save(tmp_path / "a.jpg")
    error = _refused(tmp_path / "a.jpg")
    assert "CMYK" in error.problem
    assert "sRGB" in (error.mend or "")


def _png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_16_bits_are_refused_in_grey_and_in_colour(tmp_path: Path, colour: int, channels: int) -> None:
    rows = (b"\0" + b"\x12\x34" * 8 * channels) * 8
    (tmp_path / "a.png").write_bytes(_png(8, 8, 16, colour, rows))
    error = _refused(tmp_path / "a.png")
    assert "16 bits" in error.problem
    assert "8 bits" in (error.mend or "")


@pytest.mark.parametrize(("suffix", "animated"), [("gif", True), ("png", True), ("webp", True), ("gif", False)])
def test_animations_and_gifs_are_refused(tmp_path: Path, suffix: str, animated: bool) -> None:
    frames = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (0, 120, 255)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=animated, append_images=frames[1:] if animated else [])
    error = _refused(path)
    assert ("animated" in error.problem) == animated
    assert "PNG" in (error.mend or "")


def test_a_truncated_jpeg_and_a_truncated_png_are_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("a.jpg", "a.png"):
        noise.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for share in (0.3, 0.7, 0.95):
            (tmp_path / name).write_bytes(content[: int(len(content) * share)])
            assert "truncated" in _refused(tmp_path / name).problem


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(bytes(content))
    assert "damaged" in _refused(tmp_path / "a.png").problem


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_renamed_non_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert "not an image" in _refused(tmp_path / "a.png").problem


@pytest.mark.parametrize("side", [9000, 60000])
def test_a_decompression_bomb_is_refused_before_a_pixel_is_decoded(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    (tmp_path / "a.png").write_bytes(_png(side, side, 8, 0, b""))
    error = _refused(tmp_path / "a.png")
    assert "megapixels" in error.problem
    assert "scale" in (error.mend or "")


def test_links_pipes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    _two_colours().save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (tmp_path / "folder.png").mkdir()
    assert "symbolic link" in _refused(tmp_path / "link.png").problem
    assert "not a regular file" in _refused(tmp_path / "pipe.png").problem
    assert "not a regular file" in _refused(tmp_path / "folder.png").problem
    assert "does not exist" in _refused(tmp_path / "none.png").problem


def test_a_file_beyond_the_limit_of_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _two_colours().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAXIMUM_IMAGE_BYTES", 64)
    assert "larger" in _refused(tmp_path / "a.png").problem


def test_an_image_for_the_models_is_square_centred_and_in_range(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), (0, 0, 0))
    wide.paste((255, 255, 255), (32, 0, 64, 32))  # the middle third is white
    wide.save(tmp_path / "a.png")
    tensor = load_image(tmp_path / "a.png", 16)
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    assert torch.all(tensor[:, :, 2:-2] > 0.98)  # the cut keeps the middle third and nothing else
    black = Image.new("RGB", (20, 40))
    black.save(stream := io.BytesIO(), "PNG")
    (tmp_path / "b.png").write_bytes(stream.getvalue())
    assert torch.all(load_image(tmp_path / "b.png", 16) == -1.0)
