"""Interleaved measuring: what is compared takes turns, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from components.provenance import library_versions

Case = Callable[[], object]
Clock = Callable[[], float]

MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group, name: what was measured.
        value, unit: the median of all rounds.
        ratio: median over the rounds of this case's time through that of `against` in the same round.
        low, high: quartiles of those ratios.
        floor: what the ratio cannot fall below by the count of forward passes, where such a count is known.
        per_second: items a second, where a case handles several.
        note: what a reader has to know.
    """

    group: str
    name: str
    value: float
    unit: str
    rounds: int = 1
    against: str | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    per_second: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def clock(device: torch.device) -> Clock:
    """Seconds of this process on the CPU, which other processes do not lengthen; wall-clock on a GPU."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def interleaved(
    cases: Mapping[str, Case], rounds: int, now: Clock, *, warm_up: int = 1, least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each case in each round; every other round in reverse, so that none always follows the same one.

    Args:
        least: seconds that a case lasts in a round at least, by being repeated: a single short one is mostly noise.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    repeats = dict.fromkeys(cases, 1)
    for number in range(warm_up + rounds):
        order = list(cases.items())
        for name, case in order if number % 2 == 0 else order[::-1]:
            start = now()
            for _ in range(repeats[name]):
                case()
            each = (now() - start) / repeats[name]
            if number >= warm_up:
                seconds[name].append(each)
            elif each < least:
                repeats[name] = min(MOST_REPEATS, math.ceil(least / max(each, least / MOST_REPEATS)))
    return seconds


def rows(
    group: str,
    seconds: Mapping[str, Sequence[float]],
    against: str,
    *,
    floors: Mapping[str, float] | None = None,
    items: Mapping[str, int] | int | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """The table's lines of what was measured side by side."""
    found = []
    for name, values in seconds.items():
        ratios = [own / other for own, other in zip(values, seconds[against], strict=True)]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        median = statistics.median(values)
        count = items.get(name) if isinstance(items, Mapping) else items
        found.append(
            Row(
                group,
                name,
                1000 * median,
                "ms",
                rounds=len(values),
                against=against,
                ratio=statistics.median(ratios),
                low=quarters[0],
                high=quarters[2],
                floor=(floors or {}).get(name),
                per_second=None if count is None else count / median,
                note=(notes or {}).get(name, ""),
            )
        )
    return found


def resident_mib(*, peak: bool) -> float:
    """MiB of memory that this process holds now, or the most that it has held."""
    if sys.platform == "linux":  # getrusage would give a process started by another the latter's peak, too
        field = "VmHWM:" if peak else "VmRSS:"
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10
    if not peak:
        return psutil.Process().memory_info().rss / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    try:
        processor = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        name = next(line.partition(":")[2].strip() for line in processor.splitlines() if line.startswith("Model name"))
    except (OSError, subprocess.CalledProcessError, StopIteration):
        name = platform.processor() or platform.machine()
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        **library_versions(),
    }
