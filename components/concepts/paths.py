"""Files of a concept folder are read without following links, waiting on pipes or leaving the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from components.errors import InvalidInput

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAXIMUM_IMAGE_BYTES = 64 * 2**20
MAXIMUM_TEXT_BYTES = 64 * 2**10
"""Bytes of concept.yaml and of metadata.jsonl: 50 references need a tenth of it."""


def name_problem(name: str) -> tuple[str, str] | None:
    """Why `name` is no name of an image directly inside the concept folder, and the mend; None if it is one."""
    if not name or not name.isprintable():
        return f"{name!r} is no file name", "write the image's name, e.g. 01.png"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return f"{name!r} leads out of the concept's folder", "put the image into the folder and write its bare name"
    if len(path.parts) != 1 or path.name != name:
        return f"{name!r} is not directly in the concept's folder", "put the image into the folder itself"
    if name.startswith("."):
        return f"{name!r} is hidden", "rename the file"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"{name!r} has no image suffix", "use a PNG, JPEG or WebP image with its suffix"
    return None


def file_problem(path: Path) -> tuple[str, str] | None:
    """Why `path` cannot be read as a plain file, and the mend; None if it can."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "the file does not exist", "put the file there or remove its line"
    except OSError as error:
        return f"the file cannot be reached: {error.strerror}", "check its name and its rights"
    if stat.S_ISLNK(mode):
        return "the file is a symbolic link", "replace the link by the file itself"
    if not stat.S_ISREG(mode):
        return "not a regular file", "replace it by a regular file"
    return None


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        InvalidInput: missing, a link, no regular file, too large or unreadable.
    """
    problem = file_problem(path)
    if problem:
        raise InvalidInput(problem[0], file=path, mend=problem[1])
    try:
        # O_NOFOLLOW and O_NONBLOCK: the file may have been exchanged for a link or a pipe since it was looked at
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidInput("not a regular file", file=path, mend="replace it by a regular file")
            content = stream.read(limit + 1)
    except OSError as error:
        raise InvalidInput(f"the file cannot be read: {error.strerror}", file=path, mend="check its rights") from error
    if len(content) > limit:
        raise InvalidInput(f"larger than {limit // 2**10} KiB", file=path, mend="use a smaller file")
    return content


def read_text(path: Path, *, limit: int = MAXIMUM_TEXT_BYTES) -> str:
    """The UTF-8 text of a regular file, without a byte order mark.

    Raises:
        InvalidInput: as `read_bytes`, or not UTF-8 (the line is named).
    """
    content = read_bytes(path, limit=limit)
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInput(
            f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8",
            file=path,
            field=f"line {line}",
            mend="save the file as UTF-8",
        ) from error
