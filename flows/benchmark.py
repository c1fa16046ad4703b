"""Methods x concepts x seeds, one table.

    purecc benchmark --methods purecc,lora --concepts striped_star

Every cell is a training whose adapters are evaluated on the way, tracked as one MLflow run under the benchmark's. Cells
that are measured are not measured again, a cell that fails is a row that says so, and the table is written after each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner

from components.benchmark import table
from components.benchmark.plan import Cell, Plan
from components.benchmark.table import Row
from components.files import digest_of, write_json
from components.settings import project_root
from components.tracking import runs
from components.tracking.store import open_store
from flows import stages, tasks
from flows.console import stderr
from flows.job import Job, load_job
from flows.session import Session

EXPERIMENT = "benchmark"


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two processes of one thread beat one of two


def cells_at_once(workers: int) -> ProcessPoolTaskRunner:
    """Runs this many cells at a time, each in a process of one thread."""
    return ProcessPoolTaskRunner(max_workers=workers, initializer=_one_thread)


@flow(name="benchmark", flow_run_name="{title}", task_runner=cells_at_once(1))
def benchmark(title: str, plan: dict[str, Any], target: str) -> list[Row]:
    """Measure what the table `target` lacks of the plan.

    Args:
        title: name of the benchmark's MLflow run.
        plan: a `Plan`, as JSON.
        target: the CSV.

    Returns:
        the table's rows of this plan.
    """
    wanted, file = Plan.model_validate(plan), Path(target)
    store = open_store(project_root())
    parent = runs.resume(store, EXPERIMENT, title, {"benchmark/plan": digest_of(plan)[:40]})
    keys = {cell: _key(cell, wanted) for cell in wanted.cells()}
    rows = [row for row in table.read_rows(file) if row["status"] == table.MEASURED]
    open_cells = [cell for cell, key in keys.items() if len(table.cell_rows(rows, key)) < len(cell.steps)]
    _say(f"{len(keys) - len(open_cells)} of {len(keys)} cells are measured")
    with runs.reopened(store, parent):
        futures = {measure.submit(asdict(cell), wanted.profile, parent): cell for cell in open_cells}
        for number, future in enumerate(as_completed(list(futures)), start=1):
            cell = futures[future]
            found = future.result(raise_on_failure=False)
            failed = isinstance(found, BaseException)
            rows += [_failure(cell, keys[cell], found)] if isinstance(found, BaseException) else found
            table.write_rows(rows, file)
            outcome = f"failed: {found}" if failed else "measured"
            _say(f"{number} of {len(open_cells)}: {cell.title} {outcome}", failed)
    wanted_keys = set(keys.values())
    return [row for row in rows if row["key"] in wanted_keys]


@task(name="measure", task_run_name="{cell[variant]} {cell[concept]} {cell[seed]}", cache_policy=NO_CACHE)
def measure(cell: dict[str, Any], profile: str, parent: str) -> list[Row]:
    """One cell, in its own MLflow run; its result is kept like that of any stage."""
    wanted = Cell(**{**cell, "steps": tuple(cell["steps"]), "settings": tuple(cell["settings"])})
    job = load_job(wanted.concept, profile, wanted.overrides)
    stage = job.measurement()
    kept = stages.find(stage)
    if kept is None:
        kept = stages.run(stage, lambda work: _measured(job, wanted, stage.key, parent, work))
    rows = json.loads((kept.folder / "rows.json").read_text(encoding="utf-8"))
    return [{**row, "variant": wanted.variant} for row in rows]  # two titles may name the same settings


def _measured(job: Job, cell: Cell, key: str, parent: str, work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
    from components.benchmark.cell import measure as measure_cell

    store = open_store(job.root)
    tags = {"purecc/concept": job.name, "benchmark/variant": cell.variant, "benchmark/key": key}
    with runs.run(store, EXPERIMENT, cell.title, parent=parent, tags=tags) as tracker:
        runs.log_parameters(store, tracker.run_id, job.profile.model_dump(mode="json"))
        session = Session(job, store, tracker.run_id, experiment=EXPERIMENT)
        extractor = tasks.train_extractor.fn(session) if job.trains_extractor else None
        rows = measure_cell(
            cell,
            job.concept,
            job.profile,
            None if extractor is None else extractor.folder / "adapter",
            work,
            job.root / ".purecc" / "cache" / "originals",
            tracker,
            key=key,
            evaluated=lambda step, row: tracker.log_metrics(_metrics(row), step),
        )
    write_json(work / "rows.json", rows)
    pictures = work / "evaluation" / str(cell.steps[-1])
    return {
        "rows.json": work / "rows.json",
        "history.jsonl": work / "history.jsonl",
        "evaluation": pictures,
        "adapter": work / "adapter",
    }, {"run": tracker.run_id}


def _say(text: str, failed: bool = False) -> None:
    """On its own: a console in the flow could not be sent to the processes that run its tasks."""
    stderr.print(text, style="red" if failed else "dim", highlight=False)


def _metrics(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if "/" in name and value}


def _key(cell: Cell, plan: Plan) -> str:
    return load_job(cell.concept, plan.profile, cell.overrides).measurement().key


def _failure(cell: Cell, key: str, error: BaseException) -> Row:
    return {
        "variant": cell.variant,
        "concept": cell.concept,
        "seed": str(cell.seed),
        "status": table.FAILED,
        "error": " ".join(str(error).split())[:300] or type(error).__name__,
        "key": key,
    }
