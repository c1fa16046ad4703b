"""`make bench`: its arithmetic, and that every comparison runs, in miniature."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import measuring, tables

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def row(group: str, name: str, value: float, ratio: float | None = None, **more: Any) -> dict[str, Any]:
    empty = {"unit": "s", "against": "plain", "low": None, "high": None, "floor": None, "per_second": None, "note": ""}
    return {**empty, "group": group, "name": name, "value": value, "ratio": ratio, **more}


def bench(*rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"processor": "P", "threads": 1, "device": "cpu", "torch": "2"}
    return {"machine": machine, "profile": "tiny", "overrides": [], "miniature": False, "time": "T", "rows": list(rows)}


def test_cases_take_turns_and_a_slow_round_cancels_out() -> None:
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


def test_a_short_case_is_repeated_until_a_round_of_it_lasts() -> None:
    now, calls = 0.0, {"long": 0, "short": 0}

    def case(name: str, seconds: float) -> None:
        nonlocal now
        now += seconds
        calls[name] += 1

    cases = {"long": lambda: case("long", 3.0), "short": lambda: case("short", 0.3)}
    seconds = measuring.interleaved(cases, 2, lambda: now, least=2.0)
    assert calls == {"long": 3, "short": 1 + 2 * 7}  # 7 times 0.3 s are the first to be 2 s
    assert seconds["long"] == pytest.approx([3.0, 3.0])
    assert seconds["short"] == pytest.approx([0.3, 0.3])


def miniature(folder: Path, parts: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of these parts by group and name, each a sound figure that is also printed."""
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--miniature", "--out", str(folder / "bench.json")]
    command += ["--only", parts]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "bench.json").read_text())
    rows = {(row["group"], row["name"]): row for row in written["rows"]}
    for row in rows.values():
        assert math.isfinite(row["value"])
        assert row["value"] > 0
        assert row["against"] is None or row["ratio"] > 0
    for group, name in rows:
        assert name in done.stdout, group
    return rows


@pytest.mark.slow
@pytest.mark.long  # of no one's path but `make bench`'s; how it compares and writes is tested above and below
def test_everything_that_is_compared_runs_in_miniature(tmp_path: Path) -> None:
    rows = miniature(tmp_path, "training,sampling,evaluation,tracking")
    names = {name for group, name in rows if group == "training step"}
    assert names == {
        "plain LoRA",
        "stage 1 (extractor)",
        "stage 2, frozen",
        "stage 2, detached",
        "stage 2, trainable",
        "stage 2, frozen, with DOP",
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


@pytest.mark.slow
@pytest.mark.long  # it compiles; the tests of the settings hold them to the same result
def test_what_settings_and_threads_cost_is_measured_in_miniature(tmp_path: Path) -> None:
    assert {group for group, _ in miniature(tmp_path, "settings,threads")} == {"settings", "threads"}


def test_the_document_holds_what_was_measured_and_the_rest_as_open(tmp_path: Path, repository: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text((repository / "docs" / "performance.md").read_text())
    stages = [row("pipeline", "of it extractor", 60), row("pipeline", "of it pure-learning", 40)]
    pairs = row("pipeline", "pairs of it", 50, per_second=5.0)
    tables.write(document, bench(row("training step", "stage 2, frozen", 12, 2.34), *stages, pairs))
    judges = [row("evaluation", "drawing", 1, per_second=1.0)]
    judges += [row("evaluation", name, 1, per_second=rate) for name, rate in {"dino": 100.0, "clip": 300.0}.items()]
    tables.write(document, bench(row("training step", "stage 2, frozen", 12, 2.45), *stages, pairs, *judges))
    text = document.read_text()
    assert "| stage-2 step (frozen) / plain LoRA step | <= 2.6 | 2.45 |" in text
    assert "2.34" not in text, "the tables of the run before are gone"
    assert "| evaluation of 200 pairs / training | <= 0.5 | 0.40 |" in text, "200 pairs / 5 a second / 100 s"
    assert "| of it judging, less drawing / training | <= 0.5 | 0.08 |" in text, "600 / 100 + 600 / 300 of 100 s"
    assert "| overhead of customize, s | <= 15 | open |" in text
    assert "P, 1 thread; T." in text
    assert "| 1024 | 2 | none | stage 2, frozen | open |" in text
    assert text.startswith("# Performance"), "what stands around the tables is left alone"


def test_a_document_without_its_markers_is_refused() -> None:
    whole = tables.fill("a\n<!-- x: written by tests/benchmarks -->\nold\n<!-- end of x -->\nb", "x", "new")
    assert whole == "a\n<!-- x: written by tests/benchmarks -->\nnew\n<!-- end of x -->\nb"
    for broken in ("", "<!-- end of x --><!-- x: written by tests/benchmarks -->", whole + whole):
        with pytest.raises(ValueError, match="end of x"):
            tables.fill(broken, "x", "new")


def test_two_runs_are_compared_by_their_ratios(tmp_path: Path) -> None:
    first = bench(row("g", "same", 1, 2.0), row("g", "apart", 1, 1.0), row("g", "gone", 1, 1.0), row("g", "plain", 1))
    first["rows"].append(row("g", "same", 1, 3.0, against="another"))
    second = bench(row("g", "same", 9, 2.19), row("g", "apart", 1, 0.9), row("g", "plain", 5))
    second["rows"].append(row("g", "same", 1, 3.0, against="another"))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, (first, second), strict=True):
        file.write_text(json.dumps(content))

    def compare(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCHMARKS / "compare.py"), *map(str, files), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = compare()
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "g / gone / against plain: only in the first",
        "g / apart / against plain: 1.000 and 0.900, 11 % apart",
        "3 ratios in both, 2 disagreements beyond 10%",
    ]
    files[1].write_text(json.dumps(first))
    assert compare().returncode == 0
