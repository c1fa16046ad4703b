"""`purecc benchmark` on untrained micro models: cells, failures, resuming, and that numbers come out the same."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.tracking.store import open_store
from flows.job import load_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

PLAN: dict[str, Any] = {
    "profile": "micro",
    "concepts": ["spotted_star"],
    "seeds": [3],
    "steps": [1, 2],
    "scales": [1.0, 0.5],
    "variants": {
        "lora": ["learning.method=lora"],
        "purecc": [],
        "diverging": ["learning.extractor.embedding_learning_rate=1.0e+38"],
    },
}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_cells_are_measured_once_tracked_and_a_failed_one_is_a_row(customized: Any) -> None:
    root = customized.root
    (root / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    command = ("benchmark", "--plan", "plan.yaml", "--out", "out", "--workers", "2", "--json")
    first = customized.process(*command)
    assert first.code == 1, first.stderr  # a cell failed
    rows = rows_of(root / "out" / "benchmark.csv")
    measured = {(row["method"], row["step"], row["scale"]): row for row in rows if not row["error"]}
    places = [("1", "1"), ("2", "1"), ("2", "0.5")]
    assert set(measured) == {(method, *place) for method in ("lora", "purecc") for place in places}
    (failed,) = [row for row in rows if row["error"]]
    assert failed["method"] == "diverging"
    assert "not finite" in failed["error"]
    assert [row["method"] for row in first.json["failed"]] == ["diverging"]
    page = (root / "out" / "benchmark.html").read_text()
    assert all(title in page for title in ("lora", "purecc", "diverging", "spotted_star"))
    assert {row["method"] for row in rows_of(root / "out" / "lambda.csv")} == {"purecc"}
    categories = rows_of(root / "out" / "categories.csv")
    of_prompts = {(row["method"], row["category"]) for row in categories if row["metric"] == "lambda_star/prompts"}
    assert of_prompts == {("purecc", row["category"]) for row in categories}, "of methods with an extractor"
    assert "λ* by category of prompts" in page
    assert (root / "out" / "sheets" / "spotted_star.png").is_file()

    store = open_store(root)
    runs = {run.info.run_name: run for run in store.client.search_runs([store.experiment("benchmark")])}
    parent = runs["plan"]
    cells = {name for name, run in runs.items() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {"lora spotted_star seed 3", "purecc spotted_star seed 3", "diverging spotted_star seed 3"} <= cells
    course = store.client.get_metric_history(runs["lora spotted_star seed 3"].info.run_id, "fidelity/clip_i")
    assert {point.step: point.value for point in course} == {
        step: pytest.approx(float(measured["lora", str(step), "1"]["fidelity/clip_i"]), rel=1e-5) for step in (1, 2)
    }

    PLAN["variants"].pop("diverging")
    (root / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    before = [row for row in rows if not row["error"]]
    again = customized.purecc(*command)
    assert (again.code, again.json["failed"]) == (0, [])
    assert "2 of 2 cells are measured" in again.stderr
    assert rows_of(root / "out" / "benchmark.csv") == before

    # forgotten altogether and measured in one process after the other: the same numbers
    for kept in ("artifacts", "work", "cache"):
        (root / ".purecc" / kept).rename(root / f"{kept}-before")
    anew = customized.purecc(*command[:3], "--out", "anew", "--methods", "purecc", "--json")
    assert anew.code == 0, anew.stderr
    metrics = [
        {name: value for name, value in row.items() if not name.startswith("cost/")}
        for row in rows_of(root / "anew" / "benchmark.csv")
    ]
    assert metrics == [{name: measured["purecc", row["step"], row["scale"]][name] for name in row} for row in metrics]


def test_a_plan_with_an_unknown_setting_is_refused_before_anything_runs(customized: Any) -> None:
    (customized.root / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "variants": {"x": ["learning.etta=1"]}}))
    done = customized.process("benchmark", "--plan", "plan.yaml", "--json")
    assert done.code == 2
    assert done.json["error"]["field"] == "learning.etta"


def test_a_worker_without_the_data_fetches_it(customized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a deployment starts it: not by the command line, which fetches itself."""
    from flows import benchmark

    data = customized.root / "data"
    shutil.rmtree(data)
    monkeypatch.setenv("PURECC_HOME", str(customized.root))

    class Enough(Exception):
        pass

    def loaded(name: str, profile: str, overrides: Any) -> None:
        load_job(name, profile, overrides)
        raise Enough

    monkeypatch.setattr(benchmark, "load_job", loaded)
    with pytest.raises(Enough):  # before it measures anything
        benchmark.benchmark.fn("weekly", PLAN, "out")
    assert (data / "concepts" / "spotted_star" / "concept.yaml").is_file()
