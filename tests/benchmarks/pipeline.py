"""What the pipeline costs beyond training and evaluation: whole commands as a person starts them, and the tracking.

`overhead` is the wall-clock of `purecc customize` less that of its MLflow child runs (stage 1, stage 2, evaluation):
imports, validation, Prefect, registry, report. These are single runs of wall-clock, not medians: a busy machine shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from measuring import Case, Row, clock, interleaved, rows

from components.concepts.concept import load_concept
from components.evaluation.prompts import load_prompts
from components.learning.tracker import NullTracker
from components.settings import load_profile
from components.tracking import runs
from components.tracking.store import open_store

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = 14  # of a stage-2 step
STEPS = 100
CHILDREN = ("extractor", "pure-learning", "evaluation")


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        seconds: wall-clock from its start to its end.
        peak_mib: the most memory that it and all its processes held together, sampled.
        started: when, seconds since the epoch.
        said: its JSON.
    """

    seconds: float
    peak_mib: float
    started: float
    said: dict[str, Any]


def purecc(project: Path, *arguments: str) -> Run:
    """Run a command in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    environment = {**kept, "PURECC_HOME": str(project), "PYTHONPATH": str(REPOSITORY)}
    started = time.time()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments, "--json"], cwd=project, env=environment, stdout=output
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _held_mib(process.pid))
            time.sleep(0.1)
        seconds = time.time() - started
        output.seek(0)
        text = output.read().decode()
    if process.returncode not in (0, 1) or not text.strip():
        raise RuntimeError(f"purecc {' '.join(arguments)} ended with {process.returncode}: {text}")
    said = json.loads(text)
    if said.get("status") == "error":
        raise RuntimeError(f"purecc {' '.join(arguments)}: {said['error']}")
    return Run(seconds, peak, started, said)


def _held_mib(pid: int) -> float:
    """MiB resident of a process and all below it."""
    held = 0
    with contextlib.suppress(psutil.Error):
        for member in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                held += member.memory_info().rss
    return held / 2**20


def clone(folder: Path) -> Path:
    """The repository as somebody gets it, with its data and models, in an empty folder."""
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True)
    return folder


def measure(project: Path, concept: str, profile: str, overrides: Sequence[str]) -> list[Row]:
    """A project's first customize, an unchanged one, and one of a few steps in a project that was used before."""
    arguments = ["customize", concept, "--profile", profile]
    settings = [part for override in overrides for part in ("--set", override)]
    first = purecc(project, *arguments, *settings)
    children = _children(project, concept, str(first.said["run"]))
    inside = sum(end - start for start, end in children.values())
    again = purecc(project, *arguments, *settings)
    if again.said["status"] != "unchanged":
        raise RuntimeError(f"an unchanged customize said {again.said['status']}")
    # nothing is asked of an adapter that learned for so short a time, so that it goes the whole way
    few = ["seed=12345", "learning.extractor.steps=1", "learning.pure.steps=5", "gates={}"]
    later = purecc(project, *arguments, *settings, *(part for each in few for part in ("--set", each)))
    if later.said["status"] != "promoted":
        raise RuntimeError(f"a customize without gates said {later.said['status']}: {later.said['reason']}")
    pairs = _pairs(project, concept, profile, overrides)
    later_children = _children(project, concept, str(later.said["run"]))
    later_inside = sum(end - start for start, end in later_children.values())
    _, step_end = min(later_children.values())

    def row(name: str, value: float, against: float | None = None, note: str = "") -> Row:
        ratio = None if against is None else value / against
        return Row(
            "pipeline", name, value, "s", against=None if against is None else "customize", ratio=ratio, note=note
        )

    names = ", ".join(children)
    evaluation_start, evaluation_end = children["evaluation"]
    return [
        row("customize", first.seconds),
        *(row(f"of it {name}", end - start, first.seconds) for name, (start, end) in children.items()),
        Row("pipeline", "pairs of it", pairs, "pairs", per_second=pairs / (evaluation_end - evaluation_start)),
        row("of it overhead", first.seconds - inside, first.seconds, f"less {names}"),
        row("overhead of a later customize", later.seconds - later_inside, note="the project's databases are there"),
        row("unchanged customize", again.seconds),
        row("to the end of a first step", step_end - later.started, note="imports, texts, images, its adapter"),
        Row("pipeline", "peak memory of customize", first.peak_mib, "MiB", note="all of its processes together"),
    ]


def _pairs(project: Path, concept: str, profile: str, overrides: Sequence[str]) -> int:
    """Of same-seed pictures that an evaluation draws and judges."""
    settings = load_profile(str(project / "profiles" / f"{profile}.yaml"), overrides).evaluation
    about = load_concept(project / "data" / "concepts" / concept)
    prompts = load_prompts(project / settings.prompts).for_concept(
        about.kind,
        about.class_word,
        per_category=settings.prompts_per_category,
        without_concept=settings.prompts_without_concept,
    )
    return settings.seeds * len(prompts)


def _children(project: Path, concept: str, parent: str) -> dict[str, tuple[float, float]]:
    """Stage -> start and end of its child run, seconds since the epoch."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    store = open_store(project)
    found = store.client.search_runs([store.experiment(concept)], f"tags.`mlflow.parentRunId` = '{parent}'")
    by_name = {run.info.run_name: run.info for run in found if run.info.run_name in CHILDREN}
    return {
        name: (by_name[name].start_time / 1000, by_name[name].end_time / 1000) for name in CHILDREN if name in by_name
    }


def tracking(step: Case, rounds: int, least: float, device: torch.device) -> list[Row]:
    """A hundred steps' metrics in the embedded store, beside keeping nothing and beside a hundred plain LoRA steps."""
    folder = Path(tempfile.mkdtemp(prefix="purecc-bench-"))
    try:
        store = open_store(folder)
        values = {f"metric/{number}": float(number) for number in range(METRICS)}

        def tracked() -> None:
            with runs.run(store, "bench", "bench") as tracker:
                for number in range(STEPS):
                    tracker.log_metrics(values, number)

        def untracked() -> None:
            tracker = NullTracker()
            for number in range(STEPS):
                tracker.log_metrics(values, number)

        def steps() -> None:
            for _ in range(STEPS):
                step()

        name = f"{STEPS} plain LoRA steps"
        cases = {name: steps, f"tracking {STEPS} steps": tracked, "keeping nothing": untracked}
        return rows("tracking", interleaved(cases, rounds, clock(device), least=least), name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
