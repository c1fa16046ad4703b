"""Locks that hold across hosts, by Prefect's global concurrency limits, for a registry that several hosts use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from components.tracking.locks import LockNotTaken
from components.tracking.store import Store, open_store

_LEASE = 60  # seconds after which the server frees the slot of a holder that died; a living one renews it


@contextlib.contextmanager
def prefect_lock(subject: str, timeout: float) -> Iterator[None]:
    """Hold a concurrency limit of one slot on the configured Prefect server.

    Raises:
        LockNotTaken: another holder kept it for longer than `timeout` seconds.
    """
    from prefect.concurrency.sync import concurrency

    name = f"purecc-{subject}"
    _make_limit(name)
    with contextlib.ExitStack() as stack:
        try:
            # without `strict` a limit that does not exist is, silently, no lock
            stack.enter_context(
                concurrency(name, occupy=1, timeout_seconds=timeout, strict=True, lease_duration=_LEASE)
            )
        except TimeoutError as error:
            raise LockNotTaken(f"the Prefect limit {name!r} was held for more than {timeout:g} s") from error
        yield


def _make_limit(name: str) -> None:
    """Make sure that a limit of one slot is there and holds.

    Prefect's own upsert fails where two make a limit at once, and leaves one alone that somebody switched off.
    """
    from httpx import HTTPStatusError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            # an error 500 is the database's refusal of a second one of that name; reading says whether it was that
            with contextlib.suppress(ObjectAlreadyExists, HTTPStatusError):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            found = client.read_global_concurrency_limit_by_name(name)
        if (found.limit, found.active, found.slot_decay_per_second) != (1, True, 0):
            wanted = GlobalConcurrencyLimitUpdate(limit=1, active=True, slot_decay_per_second=0)
            client.update_global_concurrency_limit(name, wanted)


def open_shared_store(root: Path) -> Store:
    """The project's tracking store; one on a server with a lock across hosts, where there is a Prefect server for it.

    Prefect's embedded server is no such place: it lives as long as one run, and never frees the slot of a holder that
    died. The embedded store needs none.
    """
    return open_store(root, prefect_lock if os.environ.get("PREFECT_API_URL") else None)
