"""The report's arithmetic and limits; how it looks is tested in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluation import figures
from components.evaluation.charts import Series, line_chart, smooth, thin, ticks
from components.evaluation.figures import Budget, embedded
from components.evaluation.pictures import write_png
from components.evaluation.report import write_report
from components.evaluation.result import EvaluationResult


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1103, 0.1187), (-3, 1200), (1e-6, 3e-6), (5, 5.0001)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-9 * abs(high) for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    digits = f"{steps[0]:.3e}".split("e")[0]
    assert float(digits) in (1, 2, 2.5, 5)


def test_thinning_keeps_the_mean_and_drops_what_is_not_finite() -> None:
    steps = np.arange(1000.0)
    values = np.sin(steps)
    at, means = thin(steps, values, points=100)
    assert len(at) == 100
    assert means.mean() == pytest.approx(values.mean())
    at, means = thin(np.arange(4.0), np.array([1.0, np.nan, np.inf, 4.0]), points=4)
    assert at.tolist() == [0, 3]
    assert means.tolist() == [1, 4]
    assert thin(np.array([]), np.array([]))[0].size == 0


def test_smoothing_is_a_centred_mean() -> None:
    values = np.arange(50.0)
    assert smooth(values)[10:40] == pytest.approx(values[10:40]), "a line stays the line"
    assert smooth(np.array([3.0])) == pytest.approx([3.0])


def test_a_chart_stays_inside_its_frame_whatever_the_values() -> None:
    values = np.array([0.1, 0.2, np.nan, 1e9, -1e9, 0.3] * 20)
    steps = list(range(len(values)))
    chart = str(line_chart("<b>", steps, [Series("a", values)], (values - 1, values + 1)))
    assert "&lt;b&gt;" in chart
    assert "nan" not in chart
    numbers = [float(part) for pair in re.findall(r'points="([^"]*)"', chart) for part in re.split(r"[ ,]", pair)]
    across, down = numbers[::2], numbers[1::2]
    assert min(across) >= 0
    assert max(across) <= 360
    assert min(down) >= 0
    assert max(down) <= 190
    assert "nothing was logged" in line_chart("x", [1, 2], [Series("a", np.array([np.nan, np.nan]))])
    assert "polyline" in line_chart("x", [1], [Series("a", np.array([2.0]))]), "a single step is a chart too"


def test_large_pictures_are_shrunk_and_small_ones_kept_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side, kind in ((64, "png"), (1024, "jpeg")):
        write_png(tmp_path / "a.png", rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        budget = Budget(10**7)
        found = embedded(tmp_path / "a.png", budget)
        assert found["data"].startswith(f"data:image/{kind};base64,")
        assert 0 < 10**7 - budget.left <= 400_000


def many_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    write_png(folder / "a.png", picture)
    both = {"custom": "a.png", "original": "a.png"}
    return [
        {"category": f"category {index % 4}", "complete": "a [V] star", "base": "a star", "has_concept": True,
         "expect": {}, "repetition": index % 2, "seed": 1, "images": both, "masks": both, "values": {}}
        for index in range(count)
    ]  # fmt: skip


def written(tmp_path: Path, result: EvaluationResult, concept: Any) -> str:
    write_report(tmp_path / "r.html", concept=concept, result=result, history={}, gates=[], lineage={})
    return (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_page_says_how_many_pairs_it_leaves_out(tmp_path: Path, concept, monkeypatch) -> None:
    result = EvaluationResult({}, many_rows(tmp_path, 60), folder=tmp_path)
    page = written(tmp_path, result, concept)
    assert page.count('class="card pair"') == 32
    assert "32 of 60 pairs are shown" in page
    # With a small budget every category is still there.
    monkeypatch.setattr("components.evaluation.report.BUDGET", 8 * 4 * 20_000)
    page = written(tmp_path, result, concept)
    assert 4 <= page.count('class="card pair"') < 32
    assert all(f"category {index}" in page for index in range(4))
    assert figures.BUDGET < 10_000_000


def test_an_empty_run_still_gives_a_page(tmp_path: Path, concept) -> None:
    page = written(tmp_path, EvaluationResult({}, []), concept)
    for text in ("No gates set", "No pair was drawn", "The profile sets no gate", "No training history"):
        assert text in page


def test_verdicts_and_missing_values(tmp_path: Path, concept) -> None:
    def page(*passed: bool) -> str:
        gates = [
            {
                "metric": "a",
                "value": None,
                "bound": ">= 1",
                "passed": ok,
                "champion": None,
                "reason": "was not measured",
            }
            for ok in passed
        ]
        write_report(
            tmp_path / "r.html", concept=concept, result=EvaluationResult({}, []), history={}, gates=gates, lineage={}
        )
        return (tmp_path / "r.html").read_text(encoding="utf-8")

    assert "Passed all 2 gates" in page(True, True)
    assert "Passed the gate" in page(True)
    refused = page(True, False)
    assert "Refused: 1 of 2 gates failed" in refused
    assert "was not measured" in refused
    assert "–" in refused
