"""Which runs are alive: each says which process it belongs to and, every half minute, that it still runs.

MLflow keeps the run of a killed process as RUNNING for ever. On the machine of a run its process is looked for; of
another machine's run the age of its heartbeat decides.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from components.tracking.store import Store

logger = logging.getLogger(__name__)

HOST, PID, STARTED, HEARTBEAT = "process/host", "process/pid", "process/started", "process/heartbeat"
INTERVAL = 30.0
"""Seconds between two heartbeats."""
SILENCE = 600.0
"""Seconds without a heartbeat after which a run of another machine counts as dead."""
_ENDED = "its process died before it could end the run"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that no later one can be taken for.

    Attributes:
        host: machine, boot and process namespace: a number of a process means something in there only.
        started: when it started, in clock ticks of that machine.
    """

    host: str
    pid: int
    started: str

    @property
    def tags(self) -> dict[str, str]:
        return {HOST: self.host, PID: str(self.pid), STARTED: self.started}

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> ProcessIdentity | None:
        """The identity that tags state, None where they state none."""
        with contextlib.suppress(KeyError, ValueError):
            return cls(tags[HOST], int(tags[PID]), tags[STARTED])
        return None

    @property
    def alive(self) -> bool | None:
        """Whether the process runs; None where that cannot be seen from here."""
        if self.host != _host():
            return None
        return _started(self.pid) == self.started


@functools.cache
def _host() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


def _started(pid: int) -> str | None:
    """When a living process started; None where there is none of that number, or only its remains."""
    if Path("/proc/self/stat").is_file():  # psutil's time moves with the clock of the machine, the ticks do not
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZXx" else fields[19]
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def this_process() -> ProcessIdentity:
    pid = os.getpid()
    return ProcessIdentity(_host(), pid, _started(pid) or "unknown")


def tags() -> dict[str, str]:
    """What a run says of its process."""
    return {**this_process().tags, HEARTBEAT: str(int(time.time()))}


@contextlib.contextmanager
def heartbeat(store: Store, run_id: str, interval: float = INTERVAL) -> Iterator[None]:
    """Inside, the run's heartbeat is renewed; a store that does not answer is no reason to stop."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(interval):
            try:
                store.client.set_tag(run_id, HEARTBEAT, str(int(time.time())))
            except Exception as error:  # noqa: BLE001  (any failure of the store; the run goes on)
                logger.info("no heartbeat for run %s: %s", run_id, error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def is_dead(tags: Mapping[str, str], now: float) -> bool:
    """Whether a run with these tags, still RUNNING, has lost its process."""
    identity = ProcessIdentity.of_tags(tags)
    if identity is None:
        return False  # not one of ours, or older than heartbeats
    alive = identity.alive
    if alive is None:
        try:
            return now - float(tags[HEARTBEAT]) > SILENCE
        except (KeyError, ValueError):
            return True
    return not alive


def _last_sign(run: Any) -> int | None:
    """Time of the run's last heartbeat, in milliseconds; None where it tells none."""
    with contextlib.suppress(KeyError, ValueError):
        return max(int(run.info.start_time), 1000 * int(run.data.tags[HEARTBEAT]))
    return None


def close_dead_runs(store: Store) -> list[str]:
    """End every RUNNING run whose process is gone, as KILLED at its last heartbeat; returns their ids.

    Safe to repeat and to run twice.
    """
    experiments = store.client.search_experiments(filter_string="name LIKE 'purecc/%'")
    places = [experiment.experiment_id for experiment in experiments]
    running, token = [], None
    while places:
        page = store.client.search_runs(places, "attributes.status = 'RUNNING'", page_token=token)
        running += list(page)
        token = page.token
        if not token:
            break
    closed = []
    for run in running:
        if is_dead(run.data.tags, time.time()):
            store.client.set_tag(run.info.run_id, "error", _ENDED)
            store.client.set_terminated(run.info.run_id, "KILLED", _last_sign(run))
            closed.append(run.info.run_id)
    return closed
