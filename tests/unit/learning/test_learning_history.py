"""History rows: exact after a resume, never a value that is not finite, the tracker sees each step once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from components.learning.history import History, read_history
from components.learning.tracker import NullTracker


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))


def fill(history: History, steps: range, value: float = 0.1) -> tuple[int, str] | None:
    for step in steps:
        history.add(step, {"loss/total": torch.tensor(value * step), "lr": torch.tensor(1e-3, dtype=torch.float64)})
    return history.flush({"memory/peak_mib": 12.0})


def test_rows_hold_exact_values_and_shared_metrics(tmp_path: Path) -> None:
    tracker = Recorder()
    assert fill(History(tmp_path / "h.jsonl", tracker, steps_kept=0), range(1, 4)) is None
    rows = read_history(tmp_path / "h.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss/total"] == float(torch.tensor(0.1 * 3))
    assert rows[0]["lr"] == 1e-3
    assert {row["memory/peak_mib"] for row in rows} == {12.0}
    assert all(row["speed/steps_per_second"] > 0 for row in rows)
    assert [(step, {"step": step, **metrics}) for step, metrics in tracker.rows] == [(r["step"], r) for r in rows]


def test_later_rows_and_a_torn_line_are_cut_off_on_resume(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    fill(History(file, NullTracker(), steps_kept=0), range(1, 8))
    with file.open("a") as stream:
        stream.write('{"loss/total": 0.8, "st')
    tracker = Recorder()
    history = History(file, tracker, steps_kept=5)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4, 5]
    fill(history, range(6, 8))
    assert [row["step"] for row in read_history(file)] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5, 6, 7], "a new tracker gets the whole history"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named_and_not_written(tmp_path: Path, bad: float) -> None:
    history = History(tmp_path / "h.jsonl", NullTracker(), steps_kept=0)
    for step, value in ((1, 0.5), (2, bad), (3, bad)):
        history.add(step, {"loss/cc": torch.tensor(0.5), "loss/total": torch.tensor(value)})
    assert history.flush({}) == (2, "loss/total")
    assert [row["step"] for row in read_history(tmp_path / "h.jsonl")] == [1]


def test_nothing_waiting_writes_nothing(tmp_path: Path) -> None:
    history = History(tmp_path / "h.jsonl", NullTracker(), steps_kept=0)
    assert history.flush({}) is None
    assert read_history(tmp_path / "h.jsonl") == []
