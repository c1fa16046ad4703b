"""Locks that hold across hosts, by Prefect's global concurrency limits, for a registry that several hosts use."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from components.tracking.locks import LockNotTaken
from components.tracking.store import Store, open_store

logger = logging.getLogger(__name__)

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


@contextlib.contextmanager
def _no_lock(subject: str, timeout: float) -> Iterator[None]:
    """Stands where a lock across hosts cannot be had: says so when one is asked for, and holds nothing."""
    logger.warning(
        "MLFLOW_TRACKING_URI names a server and PREFECT_API_URL none: the lock of %s holds on this machine only, and "
        "another host may move the same aliases meanwhile; set PREFECT_API_URL on every host that promotes",
        subject,
    )
    yield


def open_shared_store(root: Path) -> Store:
    """The project's tracking store; one on a server with a lock across hosts, where there is a Prefect server for it.

    Prefect's embedded server is no such place: it lives as long as one run, and never frees the slot of a holder that
    died. The embedded store needs none. A store on a server without one warns whenever it is locked; who only reads
    hears nothing.
    """
    if os.environ.get("PREFECT_API_URL"):
        return open_store(root, prefect_lock)
    here = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("sqlite:", "file:", "/"))
    return open_store(root, None if here else _no_lock)
