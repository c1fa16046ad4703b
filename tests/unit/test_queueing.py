"""The simulation behind docs/scaling.md against closed forms of queueing theory."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from benchmarks.queueing import Visit, simulate


def poisson(count: int, rate: float, seed: int = 0) -> list[float]:
    return [float(when) for when in np.random.default_rng(seed).exponential(1 / rate, count).cumsum()]


@pytest.mark.parametrize("load_", [0.3, 0.5, 0.8])
def test_the_wait_is_that_of_an_m_d_1_queue(load_: float) -> None:
    """Pollaczek-Khinchine with a constant service time D: rho D / (2 (1 - rho))."""
    found = simulate(poisson(30_000, load_), [Visit("one", 1.0)], {"one": 1})
    assert statistics.mean(found.waits["one"]) == pytest.approx(load_ / (2 * (1 - load_)), rel=0.08)
    assert found.utilisation["one"] == pytest.approx(load_, rel=0.02)


def test_utilisation_law_and_littles_law_along_a_route() -> None:
    """Utilisation is throughput times demand at each resource; jobs inside are throughput times time in it."""
    arrivals = poisson(20_000, 0.5)
    route = [Visit("a", 0.8), Visit(None, 3.0), Visit("b", 1.5), Visit("a", 0.4)]
    found = simulate(arrivals, route, {"a": 1, "b": 2})
    throughput = len(arrivals) / found.end
    assert found.utilisation["a"] == pytest.approx(throughput * 1.2)
    assert found.utilisation["b"] == pytest.approx(throughput * 1.5 / 2)
    assert min(found.times) >= 5.7 - 1e-9
    assert sum(found.waits["a"]) + sum(found.waits["b"]) == pytest.approx(sum(found.times) - 5.7 * len(arrivals))


@pytest.mark.parametrize(("jobs", "workers"), [(10, 3), (9, 3), (1, 4)])
def test_a_burst_on_workers_takes_whole_rounds(jobs: int, workers: int) -> None:
    found = simulate([0.0] * jobs, [Visit(None, 7.0)], {"workers": workers}, held="workers")
    assert found.end == pytest.approx(7.0 * -(-jobs // workers))
    assert found.utilisation["workers"] == pytest.approx(jobs * 7.0 / (found.end * workers))


def test_a_worker_is_held_while_its_job_waits_elsewhere() -> None:
    """Two workers, one writer: the writer alternates, the workers are held although only one of them gets on."""
    found = simulate([0.0, 0.0], [Visit("writer", 5.0)], {"workers": 2, "writer": 1}, held="workers")
    assert found.times == [5.0, 10.0]
    assert found.utilisation == {"workers": 15 / 20, "writer": 1.0}


def test_the_slowest_resource_sets_the_pace() -> None:
    found = simulate([0.0] * 400, [Visit(None, 1.0), Visit("writer", 2.0)], {"workers": 8, "writer": 1}, held="workers")
    ends = list(itertools.accumulate([3.0, *[2.0] * 399]))
    assert sorted(found.times) == pytest.approx(ends)
