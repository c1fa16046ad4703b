"""A discrete-event simulation of jobs that visit resources with queues, first come first served."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Visit:
    """A part of a job.

    Attributes:
        resource: where it takes place; None: nowhere shared, it only takes its time.
        seconds: how long it holds one of the resource's places.
    """

    resource: str | None
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs.

    Attributes:
        utilisation: resource -> share of its places that were held, from time 0 to the last end.
        waits: resource -> seconds that each visit waited for a place, in the order in which they began.
        times: seconds from arrival to end of each job, in the order in which they ended.
        end: when the last job ended.
    """

    utilisation: dict[str, float]
    waits: dict[str, list[float]]
    times: list[float]
    end: float


def simulate(
    arrivals: Sequence[float], route: Sequence[Visit], places: Mapping[str, int], *, held: str | None = None
) -> Outcome:
    """Run every job along the route.

    Args:
        arrivals: when jobs come, ascending.
        places: resource -> how many visits it serves at once.
        held: a resource of which each job takes one place before its route, and keeps it until the end.
    """
    free = dict(places)
    queues: dict[str, deque[tuple[int, int, float]]] = {name: deque() for name in places}
    held_seconds = dict.fromkeys(places, 0.0)
    waits: dict[str, list[float]] = {name: [] for name in places}
    acquired: dict[int, float] = {}
    times, number, end = [], itertools.count(), 0.0
    # (when, tie-breaker, job, index of the visit that ends; -2: arrival)
    events = [(when, next(number), job, -2) for job, when in enumerate(arrivals)]
    heapq.heapify(events)

    def request(resource: str, job: int, index: int, now: float) -> None:
        queues[resource].append((job, index, now))
        serve(resource, now)

    def serve(resource: str, now: float) -> None:
        while free[resource] and queues[resource]:
            job, index, since = queues[resource].popleft()
            free[resource] -= 1
            waits[resource].append(now - since)
            if index < 0:  # the place that is held throughout
                acquired[job] = now
                begin(job, 0, now)
            else:
                held_seconds[resource] += route[index].seconds
                heapq.heappush(events, (now + route[index].seconds, next(number), job, index))

    def begin(job: int, index: int, now: float) -> None:
        if index == len(route):
            times.append(now - arrivals[job])
            if held is not None:
                held_seconds[held] += now - acquired.pop(job)
                free[held] += 1
                serve(held, now)
            return
        visit = route[index]
        if visit.resource is None:
            heapq.heappush(events, (now + visit.seconds, next(number), job, index))
        else:
            request(visit.resource, job, index, now)

    while events:
        now, _, job, index = heapq.heappop(events)
        end = max(end, now)
        if index == -2 and held is not None:
            request(held, job, -1, now)
        elif index == -2:
            begin(job, 0, now)
        else:
            resource = route[index].resource
            if resource is not None:
                free[resource] += 1
                serve(resource, now)
            begin(job, index + 1, now)
    utilisation = {name: held_seconds[name] / (end * count) if end else 0.0 for name, count in places.items()}
    return Outcome(utilisation, waits, times, end)
