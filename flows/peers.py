"""One run by several processes, as `torchrun` and `accelerate launch` start them: the first does everything, the others
train with it.

    torchrun --nproc-per-node 2 -m flows.cli customize striped_star

The first process (RANK 0) goes through the flow, tracks, writes and registers. Where it trains, it tells the others
with which arguments; they share the batch and write nothing but their own records. All of them see the same folders.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from components.errors import PureCCError

_TIMEOUT = timedelta(days=1)  # the others wait while the first evaluates; a process that dies ends all of them at once


class PeersLost(PureCCError):
    """The processes of a run are no longer at the same place."""


_lost = False


def world() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def followed() -> bool:
    """In every process but the first: train whatever the first one trains, until it ends; then True."""
    if world() == 1 or os.environ.get("RANK", "0") == "0":
        return False
    from components.learning.tracker import NullTracker
    from flows.tasks import learn

    _join()
    while (arguments := _broadcast(None)) is not None:
        with contextlib.suppress(PureCCError):  # a training that diverged does so in all of them; the first one says it
            learn(*(*arguments, NullTracker()))
    return True


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """In the first process: the others are there inside, and are let go at the end."""
    if world() == 1:
        yield
        return
    _join()
    try:
        yield
    finally:
        if not _lost:
            _broadcast(None)


def train(*arguments: Any) -> Path:
    """`flows.tasks.learn` with these arguments and, as the last one, a tracker; in all processes, to one adapter.

    Raises:
        PeersLost: an earlier training failed in this process alone.
    """
    global _lost
    from flows.tasks import learn

    if world() == 1:
        return learn(*arguments)
    if _lost:
        raise PeersLost("a training failed in one process of this run, which cannot go on: run the command again")
    _broadcast(arguments[:-1])
    try:
        return learn(*arguments)
    except PureCCError:
        raise  # the others found the same
    except BaseException:
        _lost = True
        raise


def _join() -> None:
    import torch

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_TIMEOUT)


def _broadcast(value: Any) -> Any:
    """What the first process says to all."""
    import torch

    said = [value]
    torch.distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]
