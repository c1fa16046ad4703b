"""Coming back after a crash: what dead processes left open is closed, before new work begins.

    announce()      inside a flow: which process runs it
    recover(root)   close MLflow runs, Prefect flow runs and partial files whose process is gone

Locks need no repair: they are the kernel's file locks, which go with their holder. Everything here may be repeated, and
run by several processes at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components.errors import PureCCError
from components.tracking import liveness, registry, succession
from components.tracking.liveness import ProcessIdentity
from components.tracking.locks import LockNotTaken
from components.tracking.store import Store, is_empty
from flows.locks import open_shared_store

logger = logging.getLogger(__name__)

_TAG = "process"
_SILENCE = timedelta(seconds=liveness.SILENCE)


class AlreadyRunning(PureCCError):
    """Another run of the same kind is under way here."""


@dataclass(frozen=True)
class Recovered:
    """What was closed.

    Attributes:
        runs: MLflow runs.
        flow_runs: Prefect flow runs.
        partial: folders and files that were never finished.
        promotions: half-done moves of a champion, completed or undone, and aliases put right.
    """

    runs: tuple[str, ...] = ()
    flow_runs: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    promotions: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            (self.runs, "MLflow runs"),
            (self.flow_runs, "flow runs"),
            (self.partial, "unfinished files"),
            (self.promotions, "promotions"),
        ]
        return ", ".join(f"{len(found)} {what}" for found, what in parts if found)


@contextlib.contextmanager
def only_one(root: Path, kind: str) -> Iterator[None]:
    """Inside, no other process of this machine is inside for the same project; a killed one's place is free at once.

    Raises:
        AlreadyRunning: another one is.
    """
    path = root / ".purecc" / "locks" / f"{kind}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise AlreadyRunning(f"a {kind} run is under way in {root}: it does what this one would do") from error
    try:
        yield
    finally:
        lock.release()


def recover(root: Path) -> Recovered:
    """Close what dead processes left open in the tracking store and among the files of the project."""
    runs: list[str] = []
    promotions: list[str] = []
    if not is_empty(root):
        store = open_shared_store(root)
        runs = liveness.close_dead_runs(store)
        promotions = _settle_promotions(store)
    found = Recovered(runs=tuple(runs), partial=tuple(sweep(root)), promotions=tuple(promotions))
    if str(found):
        logger.info("closed what dead processes left: %s", found)
    return found


def _settle_promotions(store: Store) -> list[str]:
    """Complete or undo promotions that were cut off; a concept that another process holds is that one's to settle."""
    settled = []
    for concept in registry.list_models(store):
        try:
            repair = succession.reconcile(store, concept)
        except LockNotTaken as error:
            logger.info("not looked at, it is being promoted: %s", error)
            continue
        if repair is not None:
            settled.append(f"{concept}: {repair.detail}")
    return settled


def sweep(root: Path) -> list[str]:
    """Remove the remains of killed writers among the stages' artifacts; returns their paths.

    A writer holds its stage's lock: what lies about while the lock is free belongs to nobody.
    """
    removed = []
    artifacts, locks = root / ".purecc" / "artifacts", root / ".purecc" / "locks"
    for pattern in ("*/.*.partial", "*/.*.retired"):
        for remains in artifacts.glob(pattern):
            stage, key = remains.parent.name, remains.name.split(".")[1]
            lock = FileLock(locks / f"{stage}-{key}.lock", timeout=0)
            try:
                locks.mkdir(parents=True, exist_ok=True)
                with lock:
                    shutil.rmtree(remains, ignore_errors=True)
                    removed.append(str(remains))
            except Timeout:
                continue
    return removed


def announce() -> None:
    """Say in the current flow run which process runs it, so that a later process can tell that it died.

    A flow run that a worker started ends with its worker, however that ends.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    if os.environ.get("PREFECT__FLOW_RUN_ID") and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended meanwhile
            os.kill(os.getpid(), signal.SIGTERM)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    identity = liveness.this_process()
    tag = f"{_TAG}:{identity.host}:{identity.pid}:{identity.started}"
    kept = [tag for tag in context.flow_run.tags if not tag.startswith(f"{_TAG}:")]
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=[*kept, tag])


def close_dead_flow_runs() -> list[str]:
    """End every flow run whose process is gone, as CRASHED, which frees its concurrency slots; returns their names.

    To be called where Prefect's API is reachable. A run of this machine says which process to look for. A worker's run
    that says nothing, or that is of another machine, ends with its worker, and the server knows when that was last
    heard of.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    open_states = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states)))
    closed = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=wanted):
            if not _is_dead(run, client):
                continue
            state = Crashed(message="Its process died before it could end the run.")
            client.set_flow_run_state(run.id, state, force=True)
            inner = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            for task_run in inner:
                if task_run.state is None or not task_run.state.is_final():
                    client.set_task_run_state(task_run.id, Crashed(message="Its flow run's process died."), force=True)
            closed.append(run.name)
    return closed


def _is_dead(run: Any, client: Any) -> bool:
    """Whether an open flow run has lost its process."""
    identity = _identity(run.tags)
    if identity is not None and identity.alive is not None:
        return not identity.alive
    if run.work_pool_name is None or client.read_work_pool(run.work_pool_name).type != "process":
        return False  # of a machine that nobody watches, or a cluster's job, which its own worker watches
    now = datetime.now(UTC)
    name = run.labels.get("prefect.worker.name")
    if name is None:  # claimed, and nothing more was heard
        return run.state is not None and now - run.state.timestamp > _SILENCE
    worker = next((each for each in client.read_workers_for_work_pool(run.work_pool_name) if each.name == name), None)
    if worker is None or worker.last_heartbeat_time is None:
        return True
    if identity is None:  # nothing of ours has begun: soon tried again, at little cost
        return str(getattr(worker.status, "value", worker.status)) != "ONLINE"
    return bool(now - worker.last_heartbeat_time > _SILENCE)


def _identity(tags: list[str]) -> ProcessIdentity | None:
    for tag in tags:
        kind, _, rest = tag.partition(":")
        host, _, number = rest.partition(":")
        pid, _, started = number.partition(":")
        if kind == _TAG and pid.isdigit():
            return ProcessIdentity(host, int(pid), started)
    return None
