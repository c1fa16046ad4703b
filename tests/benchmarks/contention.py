"""A training step on one thread and on all cores, with the machine to itself and beside busy neighbours.

Threads of one process wait for each other many times in a step. On cores that something else uses, too, each wait may
last until the neighbour's turn is over: what a second thread saves on an idle machine is small beside that.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
import training
from measuring import Case, Row, interleaved, rows

from components.settings import Profile

_BUSY = "while True: pass"


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(folder: Path, profile: Profile, rounds: int) -> list[Row]:
    """The step of the default method in wall-clock; CPU time would not show the waiting. Nothing of a GPU's step."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    bench = training.Bench(folder, profile)
    if bench.backbone.device.type != "cpu":
        return []
    step = training.ours(bench)[training.WITH_DOP]

    def on(threads: int) -> Case:
        def case() -> None:
            torch.set_num_threads(threads)
            step()

        return case

    def name(threads: int) -> str:
        return "1 thread" if threads == 1 else f"{threads} threads"

    cases = {name(threads): on(threads) for threads in sorted({1, cores})}
    before = torch.get_num_threads()
    try:
        idle = interleaved(cases, rounds, time.perf_counter)
        with neighbours(cores):
            busy = interleaved(cases, rounds, time.perf_counter)
    finally:
        torch.set_num_threads(before)
    beside = {f"{case}, beside {cores} busy processes": seconds for case, seconds in busy.items()}
    return rows("threads", {**idle, **beside}, name(1))
