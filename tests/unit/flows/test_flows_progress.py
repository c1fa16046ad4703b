from __future__ import annotations

from pathlib import Path

import pytest

from components.learning.tracker import NullTracker
from flows import progress
from flows.progress import StageProgress, describe, display


def test_the_line_names_loss_and_lambda() -> None:
    metrics = {"loss/total": 0.12345, "lambda_star/mean": 0.5, "lambda_star/min": -0.25, "lambda_star/max": 1.0}
    assert describe(metrics) == "loss 0.1235  λ* 0.500 [-0.25..1.00]"
    assert describe({"loss/cc": 2.0}) == "loss 2.0000"
    assert describe({"lambda_star/mean": 1.0}) == "λ* 1.000"
    assert describe({}) == ""


def test_without_a_terminal_there_are_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(float(second) for second in range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with display("stage 1", 4) as show:
        tracker = StageProgress(NullTracker(), show)
        for step in range(1, 5):
            tracker.log_metrics({"loss/total": 1.0}, step)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("stage 1: 4/4")
    assert "left" in lines[2]
    assert "left" not in lines[-1]


def test_everything_is_passed_on(tmp_path: Path) -> None:
    seen: list[object] = []

    class Recorder(NullTracker):
        def log_metrics(self, metrics: object, step: int) -> None:
            seen.append((metrics, step))

        def log_image(self, name: str, path: Path) -> None:
            seen.append((name, path))

        def flush(self) -> None:
            seen.append("flush")

    with display("stage 1", 4) as show:
        tracker = StageProgress(Recorder(), show)
        tracker.log_metrics({"loss/cc": 1.0}, 3)
        tracker.log_image("preview", tmp_path)
        tracker.flush()
    assert seen == [({"loss/cc": 1.0}, 3), ("preview", tmp_path), "flush"]
