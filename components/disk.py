"""Full disks: which errors speak of one, and where there is no room."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

LEAST_ROOM = 64 * 1024
"""Bytes; with less than that a file system counts as full."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = ("disk is full", "No space left on device", "Disk quota exceeded", "File too large")


def is_full(error: BaseException | None) -> bool:
    """Whether a write found no room, wherever in the chain of causes; databases and libraries say it in words only."""
    return any(_says_so(each) for each in _chain(error))


def full_place(error: BaseException | None, places: Iterable[Path] = ()) -> Path | None:
    """Where there was no room: the file that the error names, or the place with the least room; None: nowhere.

    Args:
        places: where may be written, those that are likelier first; the ones that do not exist are passed over.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and _says_so(each) and each.filename is not None:
            return Path(str(each.filename2 or each.filename))
    rooms: dict[Path, int] = {}
    for place in places:
        with contextlib.suppress(OSError):
            rooms[place] = shutil.disk_usage(place).free
    least = min(rooms, key=rooms.__getitem__, default=None)
    # what was written in vain may be gone by now: an error that speaks of a full disk is believed
    return least if least is not None and (rooms[least] < LEAST_ROOM or is_full(error)) else None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    return any(words in str(error) for words in _WORDS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
