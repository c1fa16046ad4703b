"""Full disks: how errors speak of them, and which place is named."""

from __future__ import annotations

import errno
from collections import namedtuple
from pathlib import Path

import pytest

from components import disk
from components.tracking import runs


def chained(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("the upload failed") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied", "/a"), False),
        (ValueError("(sqlite3.OperationalError) database or disk is full"), True),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (ValueError("a value"), False),
    ],
)
def test_which_errors_speak_of_a_full_disk(error: Exception, full: bool) -> None:
    assert disk.is_full(error) is full
    assert disk.is_full(chained(error)) is full
    if full:
        assert runs.is_transient(error)  # it says nothing about the concept


def test_the_file_of_the_error_is_named_or_else_the_place_with_the_least_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    rooms = {tmp_path / "a": 10**9, tmp_path / "b": 10**6}

    def measured(place: Path) -> usage:
        if place not in rooms:
            raise FileNotFoundError(place)
        return usage(rooms[place])

    monkeypatch.setattr(disk.shutil, "disk_usage", measured)
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    named = chained(OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    assert disk.full_place(named, places) == Path("/x/y")
    assert disk.full_place(ValueError("database or disk is full"), places) == tmp_path / "b"
    assert disk.full_place(ValueError("a value"), places) is None
    rooms[tmp_path / "b"] = 0
    assert disk.full_place(ValueError("a value"), places) == tmp_path / "b"
    assert disk.full_place(ValueError("database or disk is full"), []) is None
