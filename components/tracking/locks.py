"""Locks by subject, such as the promotion of one concept's adapters.

The embedded store is used on one machine, where a file lock is enough. A store on a server is used from many: whoever
opens it gives it a second lock that holds across hosts (`flows.locks` has one by Prefect's concurrency limits).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from components.errors import PureCCError


class LockNotTaken(PureCCError):
    """Another holder kept a lock for longer than the waiter was willing to wait."""


class Lock(Protocol):
    """Holds `subject` exclusively inside; raises LockNotTaken where it cannot be had within `timeout` seconds."""

    def __call__(self, subject: str, timeout: float) -> AbstractContextManager[object]: ...


def file_lock(folder: Path) -> Lock:
    """Locks between the processes and threads of this machine: files below `folder`, freed when a holder dies."""

    @contextlib.contextmanager
    def hold(subject: str, timeout: float) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{subject}.lock", timeout=timeout)
        try:
            lock.acquire()
        except Timeout as error:
            raise LockNotTaken(f"{lock.lock_file}: held by another process for more than {timeout:g} s") from error
        try:
            yield
        finally:
            lock.release()

    return hold
