"""One customize in MLflow: the parent run with its parameters, tags and dataset, and the child runs of its stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.provenance import library_versions
from components.secrets import redact
from components.tracking import runs
from components.tracking.runs import RunTracker
from components.tracking.servability import FreshProcess
from components.tracking.store import Store
from flows.job import Job
from flows.locks import open_shared_store
from flows.progress import Display, StageProgress, display


@dataclass(frozen=True)
class Session:
    """A job with the store it is tracked in and its parent run.

    Attributes:
        experiment: where the runs of its stages go, `purecc/<experiment>`; None: to the concept's.
        fresh: the process that will try the new version before it may be promoted.
    """

    job: Job
    store: Store
    run_id: str
    experiment: str | None = None
    fresh: FreshProcess = field(default_factory=FreshProcess)

    @contextlib.contextmanager
    def stage(self, name: str, title: str, total: int, history: Path | None = None) -> Iterator[StageRun]:
        """The child run of a stage, with progress on stderr."""
        tags = {"purecc/stage": name, "purecc/concept": self.job.name}
        experiment = self.experiment or self.job.name
        child = runs.run(self.store, experiment, name, parent=self.run_id, tags=tags, replay=history)
        with display(title, total) as show, child as tracker:
            yield StageRun(tracker, StageProgress(tracker, show), show)

    def tag(self, key: str, value: str) -> None:
        self.store.client.set_tag(self.run_id, key, redact(value))


@dataclass(frozen=True)
class StageRun:
    """What a running stage writes to: the child run, through the progress."""

    run: RunTracker
    tracker: StageProgress
    display: Display


def _flow_run() -> dict[str, str]:
    """Which flow run this is, for whoever dispatched it."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return {} if context is None or context.flow_run is None else {runs.FLOW_RUN: str(context.flow_run.id)}


@contextlib.contextmanager
def open_session(job: Job) -> Iterator[Session]:
    """The parent run of one customize."""
    from components.backbones.device import gpus_of

    store = open_shared_store(job.root)
    tags = {
        "purecc/concept": job.name,
        "purecc/profile": job.profile.name,
        "data/fingerprint": job.data,
        "data/dvc": job.data_version,
        "base/fingerprint": job.base,
        "profile/digest": job.profile.digest(),
        "code/commit": job.code.commit or "none",
        "code/dirty": str(job.code.dirty).lower(),
        "seed": str(job.profile.seed),
        runs.GPUS: str(gpus_of(job.profile.base)),
        **_flow_run(),
        **job.inputs.tags,
        **{f"library/{name}": version for name, version in library_versions().items()},
    }
    base = job.root / job.profile.base.path
    fresh = FreshProcess(base if base.is_dir() else None)
    with runs.run(store, job.name, f"customize {job.name}", tags=tags) as tracker, fresh:
        runs.log_parameters(store, tracker.run_id, job.profile.model_dump(mode="json"))
        source = job.concept.folder.relative_to(job.root).as_posix()
        runs.log_dataset(store, tracker.run_id, job.name, source, job.data_version, job.data_pointer)
        yield Session(job, store, tracker.run_id, fresh=fresh)
