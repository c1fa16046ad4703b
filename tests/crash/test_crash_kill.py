"""A few kills of the table that `kill_table.py` prints, at its most delicate places; the whole of it is run by hand."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kill_table() -> Any:
    file = Path(__file__).with_name("kill_table.py")
    spec = importlib.util.spec_from_file_location("kill_table", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    kill_table: Any, micro_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = [("checkpoint", 0.0), ("registration", 0.02)]
    monkeypatch.setattr(kill_table, "moments", lambda seconds, kills, source: iter(places))
    rows = kill_table.run(len(places), 1, 0, tmp_path / "kills", micro_family)
    assert [row.problems for row in rows] == [[], []]
    assert all(row.killed and row.code == 0 for row in rows)


def test_the_moments_are_drawn_from_the_seed(kill_table: Any) -> None:
    drawn = [list(kill_table.moments(100.0, 30, random.Random(seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {place for place, _ in drawn[0]} == {"any", *kill_table.PLACES}
    assert max(moment for place, moment in drawn[0] if place == "any") > 50
