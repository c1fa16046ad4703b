"""A few kills of the table that `kill_table.py` prints, at its most delicate places; the whole of it is run by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from crash import kill_table
from crash.kill_table import Calm, Moment, Row
from crash.sites import PLACES, ServerSite, Site
from crash.state import State

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def embedded(micro_family: Path, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("embedded")
    with kill_table.made(folder, 1, embedded=True, family=micro_family, prefect_home=prefect_home) as site:
        yield site


@pytest.fixture(scope="module")
def calm(embedded: Site) -> Calm:
    """The embedded run that nothing disturbed; one on servers and workers comes to the same, bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return kill_table.undisturbed(embedded)


def test_an_embedded_run_that_was_killed_ends_as_one_that_was_not(embedded: Site, calm: Calm) -> None:
    rows = kill_table.run(embedded, [Moment("flow", "registration", 0.0, 0.02)], calm=calm)
    assert [row.problems for row in rows] == [[]]
    assert all(row.killed and row.again == 0 for row in rows)


@pytest.mark.long
def test_a_run_on_servers_and_workers_that_was_killed_ends_as_one_that_was_not(
    micro_family: Path, tmp_path: Path, calm: Calm
) -> None:
    with kill_table.made(tmp_path, 1, embedded=False, family=micro_family) as site:
        rows = kill_table.run(site, [Moment("machine", "checkpoint", 0.0)], calm=calm)
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


def test_a_table_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State({"a": (1, "x")}, {"a": ["x"]}, None, [])
    killed: list[tuple[int, Moment]] = []

    def kill_once(site: object, number: int, moment: Moment, expected: State, source: random.Random) -> Row:
        killed.append((number, moment))
        return Row(number, moment, source.random(), killed=True, code=-9, again=0, problems=[])

    monkeypatch.setattr(kill_table, "kill_once", kill_once)
    site = cast("Site", SimpleNamespace(targets=ServerSite.targets))
    whole = kill_table.run(site, 4, out=tmp_path / "whole.md", title="t", calm=Calm(state, 100.0))
    for count in (0, 2):  # two rows are there, the rest was lost with the process
        facts = json.loads((tmp_path / "whole.json").read_text())
        facts["rows"] = facts["rows"][:count]
        (tmp_path / "cut.json").write_text(json.dumps(facts))
        killed.clear()
        again = kill_table.run(site, 4, out=tmp_path / "cut.md", title="t", calm=Calm(state, 300.0))
        assert again == whole
        assert [number for number, _ in killed] == list(range(count + 1, 5))
        assert (tmp_path / "cut.md").read_text() == (tmp_path / "whole.md").read_text()
    other = replace(state, champions={"a": (1, "other")})
    kill_table.run(site, 4, out=tmp_path / "cut.md", title="t", calm=Calm(other, 100.0))
    assert len(killed) == 2 + 4  # measured against other champions: all of it anew


@pytest.mark.parametrize(
    ("lasts", "tried"), [(100.0, [80.0]), (30.0, [80.0, 40.0, 20.0]), (1.0, [80.0, 40.0, 20.0, 10.0])]
)
def test_a_run_that_had_ended_before_its_moment_is_killed_earlier(
    lasts: float, tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[float] = []

    def kill_once(site: object, number: int, moment: Moment, expected: State, source: random.Random) -> Row:
        moments.append(moment.seconds)
        return Row(number, moment, moment.seconds, killed=moment.seconds < lasts, code=None, again=0, problems=[])

    monkeypatch.setattr(kill_table, "kill_once", kill_once)
    state = State({"a": (1, "x")}, {"a": ["x"]}, None, [])
    site = cast("Site", SimpleNamespace())
    row = kill_table.kill_in_time(site, 1, Moment("worker", "any", 80.0), state, seed=0)
    assert moments == tried
    assert row.killed == (tried[-1] < lasts)
    page = kill_table.page([row], 1.0, "t")
    assert ("In 1 rows the run had ended before its moment." in page) == (not row.killed)
