"""Methods x concepts x seeds, one table and one report.

    purecc benchmark --methods purecc,lora --concepts striped_star

Every cell is a training whose adapters are evaluated on the way, tracked as one MLflow run under the benchmark's. Cells
that are measured are not measured again, a cell that fails is a row that says so, and the table is written after each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner

from components.benchmark import outcome
from components.benchmark.cell import CATEGORIES, EVALUATION, HISTORY, ROWS, Row
from components.benchmark.outcome import Kept
from components.benchmark.plan import Cell, Plan
from components.evaluation.cells import write_cells
from components.files import digest_of
from components.secrets import redact
from components.settings import project_root
from components.tracking import runs
from components.tracking.store import open_store
from flows import stages, tasks
from flows.console import stderr
from flows.job import Job, load_job
from flows.session import Session
from flows.start import fetch_data

EXPERIMENT = "benchmark"


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two processes of one thread beat one of two
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # what a cell has done stands in its checkpoint


def cells_at_once(workers: int) -> ProcessPoolTaskRunner:
    """Runs this many cells at a time, each in a process of one thread."""
    return ProcessPoolTaskRunner(max_workers=workers, initializer=_start_worker)


@contextlib.contextmanager
def _ending_workers() -> Iterator[None]:
    """An interrupted flow does not wait for the cells that run: they go on from their checkpoints another time."""
    try:
        yield
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise


@flow(name="benchmark", flow_run_name="{title}", task_runner=cells_at_once(1))
def benchmark(title: str, plan: dict[str, Any], target: str, facts: dict[str, str] | None = None) -> dict[str, str]:
    """Measure what the folder `target` lacks of the plan, and write its report.

    Args:
        title: name of the benchmark's MLflow run.
        plan: a `Plan`, as JSON.
        target: folder of the table, see `components.benchmark.outcome`; from the project's folder if relative.
        facts: what the report says of the run.

    Returns:
        `html`, `markdown` and `cells` -> file.
    """
    wanted, folder = Plan.model_validate(plan), project_root() / target
    store = open_store(project_root())
    parent = runs.resume(store, EXPERIMENT, title, {"benchmark/plan": digest_of(plan)[:40]})
    for name in wanted.concepts:
        fetch_data(project_root(), name)
    jobs = {cell: load_job(cell.concept, wanted.profile, cell.overrides) for cell in wanted.cells()}
    found = {cell: job.measurement(cell.scales) for cell, job in jobs.items()}
    rows = outcome.read_table(folder)
    missing = [cell for cell, stage in found.items() if stage.key not in set(rows[outcome.KEY])]
    _say(f"{len(found) - len(missing)} of {len(found)} cells are measured")
    with runs.reopened(store, parent), _ending_workers():
        if len(rows):
            write_cells(rows, folder / outcome.CELLS)  # without what failed before
        futures = {measure.submit(asdict(cell), wanted.profile, parent): cell for cell in missing}
        for number, future in enumerate(as_completed(list(futures)), start=1):
            cell = futures[future]
            result = future.result(raise_on_failure=False)
            if isinstance(result, BaseException):
                new, said = [_failure(cell, jobs[cell].concept.kind, result)], f"failed: {result}"
            else:
                new, said = outcome.rows_of(_kept(cell, result)), "measured"
            rows = outcome.add_rows(rows, new, found[cell].key)
            write_cells(rows, folder / outcome.CELLS)
            _say(f"{number} of {len(missing)}: {cell.title} {said}", failed=isinstance(result, BaseException))
        kept = [_kept(cell, stage.folder) for cell, stage in found.items() if stages.find(stage) is not None]
        outcome.gather(folder, kept)
        files = outcome.write_report(folder, wanted, facts or {})
        store.client.log_artifacts(parent, str(folder), "benchmark")
    return {name: str(file) for name, file in files.items()}


@task(name="measure", task_run_name="{cell[variant]} {cell[concept]} {cell[seed]}", cache_policy=NO_CACHE)
def measure(cell: dict[str, Any], profile: str, parent: str) -> str:
    """One cell, in its own MLflow run; its result is kept like that of any stage.

    Returns:
        the folder of what it kept.
    """
    wanted = Cell(**cell)
    job = load_job(wanted.concept, profile, wanted.overrides)
    stage = job.measurement(wanted.scales)
    kept = stages.find(stage)
    if kept is None:
        kept = stages.run(stage, lambda work: _measured(job, wanted, stage.key, parent, work))
    return str(kept.folder)


def _measured(job: Job, cell: Cell, key: str, parent: str, work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
    from components.benchmark.cell import measure as measure_cell

    store = open_store(job.root)
    tags = {"purecc/concept": job.name, "benchmark/method": cell.variant, "benchmark/key": key}
    with runs.run(store, EXPERIMENT, cell.title, parent=parent, tags=tags) as tracker:
        runs.log_parameters(store, tracker.run_id, job.profile.model_dump(mode="json"))
        session = Session(job, store, tracker.run_id, experiment=EXPERIMENT)
        extractor = tasks.train_extractor.fn(session) if job.trains_extractor else None
        measure_cell(
            cell,
            job.concept,
            job.profile,
            None if extractor is None else extractor.folder / "adapter",
            work,
            job.root / ".purecc" / "cache" / "originals",
            tracker,
            evaluated=lambda row: tracker.log_metrics(_metrics(row), row["step"]),
        )
    kept = {name: work / name for name in (ROWS, CATEGORIES, HISTORY, EVALUATION, "adapter")}
    return kept, {"run": tracker.run_id}


def _metrics(row: Row) -> dict[str, float]:
    suffix = "" if row["scale"] == 1 else f"/scale_{row['scale']:g}"
    return {f"{name}{suffix}": value for name, value in row.items() if "/" in name}


def _kept(cell: Cell, folder: str | Path) -> Kept:
    return Kept(cell.variant, cell.concept, cell.seed, Path(folder))


def _failure(cell: Cell, kind: str, error: BaseException) -> Row:
    reason = " ".join(redact(str(error)).split())[:300] or type(error).__name__
    names = {"method": cell.variant, "concept": cell.concept, "kind": kind, "seed": cell.seed}
    return {**names, "step": cell.steps[-1], "scale": 1.0, "error": reason}


def _say(text: str, *, failed: bool = False) -> None:
    """On its own: a console in the flow could not be sent to the processes that run its tasks."""
    stderr.print(text, style="red" if failed else "dim", highlight=False)
