"""A few kills of the table that `kill_table.py` prints, at its most delicate places; the whole of it is run by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from crash import kill_table
from crash.kill_table import Moment
from crash.sites import PLACES, ServerSite
from crash.state import State

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_an_embedded_run_that_was_killed_ends_as_one_that_was_not(micro_family: Path, tmp_path: Path) -> None:
    planned = [Moment("flow", "registration", 0.0, 0.02)]
    with kill_table.made(tmp_path, 1, embedded=True, family=micro_family) as site:
        rows = kill_table.run(site, planned)
    assert [row.problems for row in rows] == [[]]
    assert all(row.killed and row.again == 0 for row in rows)


def test_a_run_on_servers_and_workers_that_was_killed_ends_as_one_that_was_not(
    micro_family: Path, tmp_path: Path
) -> None:
    planned = [Moment("machine", "checkpoint", 0.0)]
    with kill_table.made(tmp_path, 1, embedded=False, family=micro_family) as site:
        rows = kill_table.run(site, planned)
    assert [row.problems for row in rows] == [[]]
    assert all(row.killed and row.again == 0 for row in rows)


def test_the_moments_are_drawn_from_the_seed() -> None:
    targets = ServerSite.targets
    drawn = [list(kill_table.moments(100.0, 100, targets, random.Random(seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {(moment.target, moment.place) for moment in drawn[0]} >= {(target, "any") for target in targets}
    assert len({(moment.target, moment.place) for moment in drawn[0]}) == len(targets) * (len(PLACES) + 1)
    assert max(moment.seconds for moment in drawn[0] if moment.place == "any") > 50


def test_what_counts_as_lost_and_doubled() -> None:
    whole = {"a": (1, "x"), "b": (1, "y")}
    calm = State(whole, {"a": ["x"], "b": ["y"]}, whole, [whole])
    assert calm.differences(calm) == []
    part = {"a": (1, "x")}
    assert replace(calm, bundles=[whole, part]).differences(calm) == []  # of the champions that there were
    assert replace(calm, bundles=[whole, part, part]).differences(calm) != []
    assert replace(calm, bundles=[part], bundle=part).differences(calm) != []
    assert replace(calm, bundles=[whole, {"a": (2, "x")}]).differences(calm) != []
    assert replace(calm, versions={"a": ["x", "x"], "b": ["y"]}).differences(calm) != []
    assert replace(calm, versions={"a": ["x"]}).differences(calm) != []
    assert replace(calm, champions={**whole, "a": (2, "x")}).differences(calm) != []
