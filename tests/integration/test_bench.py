"""`make bench`: its arithmetic, and that every comparison runs, in miniature."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_measuring", BENCHMARKS / "measuring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_cases_take_turns_and_a_slow_round_cancels_out(measuring: ModuleType) -> None:
    now, order = 0.0, []
    slowness = itertools.cycle([1.0, 10.0])  # every other round the machine is ten times as slow
    speed = 1.0

    def case(name: str, cost: float, first: bool) -> None:
        nonlocal now, speed
        if len(order) % 2 == 0:
            speed = next(slowness)
        order.append(name)
        now += cost * speed

    cases = {"a": lambda: case("a", 1.0, True), "b": lambda: case("b", 3.0, False)}
    seconds = measuring.interleaved(cases, 6, lambda: now, warm_up=2)
    assert order == ["a", "b", "b", "a"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 6, "b": 6}
    first, second = measuring.rows("g", seconds, "a", items={"b": 30}, floors={"b": 2.5})
    assert (first.ratio, first.per_second) == (1.0, None)
    assert (second.ratio, second.low, second.high, second.floor) == (3.0, 3.0, 3.0, 2.5)
    assert second.value == pytest.approx(1000 * (3 + 30) / 2)
    assert second.per_second == pytest.approx(30 / 16.5)


@pytest.mark.slow
def test_everything_that_is_compared_runs_in_miniature(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--miniature", "--out", str(tmp_path / "bench.json")]
    command += ["--only", "training,sampling,evaluation,tracking"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["group"], row["name"]): row for row in written["rows"]}
    names = {name for group, name in rows if group == "training step"}
    assert names == {
        "plain LoRA",
        "stage 1 (extractor)",
        "stage 2, frozen",
        "stage 2, detached",
        "stage 2, trainable",
        "script-style LoRA",
        "script-style stage 2",
    }
    assert {group for group, _ in rows} == {
        "training step",
        "against the script-style loop",
        "sampling",
        "adapter",
        "evaluation",
        "tracking",
    }
    for row in rows.values():
        assert math.isfinite(row["value"])
        assert row["value"] > 0
        assert row["against"] is None or row["ratio"] > 0
    for group, name in rows:
        assert name in done.stdout, group
