"""The stages of a customize as Prefect tasks: each a call into `components`, kept by the digest of its inputs."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from components.concepts.concept import fingerprint
from components.errors import PureCCError
from components.files import MANIFEST, atomic_folder, write_json
from components.provenance import PROVENANCE, Provenance, library_versions
from components.tracking import runs
from components.tracking.gates import GateReport
from components.tracking.registry import Version, content_digest
from flows import judgement, peers, stages
from flows.console import finite, stderr
from flows.job import Job
from flows.outcome import Outcome
from flows.session import Session
from flows.stages import Artifact, Stage

if TYPE_CHECKING:
    from components.learning.tracker import Tracker

logger = logging.getLogger(__name__)


def transient(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed task may be tried again: never what we raise on purpose, that would fail again."""
    try:
        state.result()
    except Exception as error:  # noqa: BLE001  (whatever it was)
        return runs.is_transient(error)
    return False


@task(name="validate", cache_policy=NO_CACHE)
def validate(session: Session) -> Artifact:
    """Judge the concept's folder; its data docs go to the run, also where they say why it was refused.

    Raises:
        InvalidInput: what blocks, with file, field and mend.
    """
    job = session.job

    def make(work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        from components.concepts.validation import validate as judge

        report = judge(job.concept.folder, job.profile.concepts, work / "docs")
        write_json(work / "report.json", finite({**report.to_json(), "docs_index": "docs/index.html"}))
        if report.errors:
            session.tag("validation/errors", str(len(report.errors)))
            session.store.client.log_artifacts(session.run_id, str(work), "validation")
            shutil.rmtree(work)  # there is nothing to go on from: the next attempt is with other data
            report.raise_for_errors()
        return {"report.json": work / "report.json", "docs": work / "docs"}, {}

    stderr.print(f"validating {job.name} ...", style="dim")
    artifact = stages.run(job.validation(), make)
    findings = json.loads((artifact.folder / "report.json").read_text(encoding="utf-8"))["warnings"]
    for finding in findings:
        logger.warning("%s: %s: %s (%s)", finding["file"], finding["field"], finding["problem"], finding["mend"])
    session.tag("validation/warnings", str(len(findings)))
    session.tag("validation/docs", str(artifact.folder / "docs" / "index.html"))
    session.store.client.log_artifacts(session.run_id, str(artifact.folder), "validation")
    return artifact


@task(name="train_extractor", cache_policy=NO_CACHE)
def train_extractor(session: Session) -> Artifact:
    """Stage 1: the representation extractor theta1."""
    stage = session.job.extractor()

    def make(work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        steps = session.job.profile.learning.extractor.steps
        stage_run = session.stage("extractor", "stage 1: extractor", steps, work / "history.jsonl")
        with stage_run as running:
            adapter = peers.train(session.job, stage.name, None, work, running.tracker)
            return _trained(session, stage, work, adapter, running.run.run_id, ())

    return _noted(session, stages.run(stage, make))


@task(name="train_pure", cache_policy=NO_CACHE)
def train_pure(session: Session, extractor: Artifact | None) -> Artifact:
    """Stage 2: pure learning, guided by the frozen extractor; the only stage of the other methods."""
    parent = None if extractor is None else extractor.folder / "adapter"
    stage = session.job.pure(None if parent is None else content_digest(parent))

    def make(work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        learning = session.job.profile.learning
        title = f"training: {learning.method}" if parent is None else "stage 2: pure learning"
        stage_run = session.stage("pure-learning", title, learning.pure.steps, work / "history.jsonl")
        with stage_run as running:
            adapter = peers.train(session.job, stage.name, parent, work, running.tracker)
            parents = () if extractor is None else (extractor.stage.key,)
            return _trained(session, stage, work, adapter, running.run.run_id, parents)

    return _noted(session, stages.run(stage, make))


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate(session: Session, adapter: Artifact) -> Artifact:
    """Same-seed pairs of the adapter and the original model, and their metrics."""
    if session.job.profile.promotion.servability:
        session.fresh.start()  # its imports take as long as all else that comes after the evaluation
    artifact = _noted(session, evaluation_of(session, adapter.folder / "adapter"))
    runs.log_final(session.store, session.run_id, artifact.facts["metrics"])
    return artifact


@task(name="bless", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=transient)
def bless(
    session: Session, extractor: Artifact | None, adapter: Artifact, evaluation: Artifact
) -> tuple[Version, GateReport]:
    """Register and judge the adapter and write its report, for a person who is asked before it is promoted."""
    return judgement.bless(session, extractor, adapter, evaluation, evaluation_of)


@task(name="promote", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=transient)
def promote(session: Session, extractor: Artifact | None, adapter: Artifact, evaluation: Artifact) -> Outcome:
    """Register the adapter, judge it, write the report, and move the champion alias if every gate is passed."""
    return judgement.conclude(session, extractor, adapter, evaluation, evaluation_of)


def evaluation_of(session: Session, adapter: Path) -> Artifact:
    """The evaluation of an adapter folder under this job's settings, kept like every stage."""
    job, digest = session.job, content_digest(adapter)

    def make(work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        from components.evaluation.evaluate import evaluate as measure

        with session.stage("evaluation", "evaluation", 1) as running, _backbone(job) as backbone:
            backbone.load_adapter(adapter, "custom")
            result = measure(
                backbone,
                "custom",
                job.concept,
                job.profile,
                work / "evaluation",
                job.root / ".purecc" / "cache" / "originals",
                adapter_digest=digest,
                progress=lambda what, done, total: running.display.advance(done, what, total=total),
            )
            runs.log_final(session.store, running.run.run_id, result.metrics)
            return {"evaluation": work / "evaluation"}, {"metrics": result.metrics, "run": running.run.run_id}

    return stages.run(job.evaluation(digest), make)


def learn(job: Job, stage: str, extractor: Path | None, work: Path, tracker: Tracker) -> Path:
    """Train a stage's adapter, in every process of the run (`flows.peers`).

    Args:
        stage: `extractor` or `pure-learning`.
        extractor: the adapter folder of stage 1, for `pure-learning` where the method has one.
    """
    from components.learning.extractor import train_extractor
    from components.learning.pure import train_pure

    with _backbone(job) as backbone:
        if stage == "extractor":
            return train_extractor(backbone, job.concept, job.profile, work, tracker)
        earlier = [learned.folder for learned in job.earlier]
        return train_pure(backbone, job.concept, job.profile, extractor, work, tracker, earlier=earlier)


@contextlib.contextmanager
def _backbone(job: Job) -> Iterator[Any]:
    """The model that the job starts from: the base, with the concepts that were learned before."""
    from components.backbones.composition import on_top_of
    from components.backbones.sd3 import SD3Backbone

    backbone = SD3Backbone.load(job.profile.base)
    names = []
    for learned in job.earlier:
        names.append(f"earlier/{learned.name}")
        backbone.load_adapter(learned.folder, names[-1])
    with on_top_of(backbone, names, job.profile.continual.earlier) if names else contextlib.nullcontext():
        yield backbone


def _trained(
    session: Session, stage: Stage, work: Path, adapter: Path, run_id: str, parents: tuple[str, ...]
) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
    """Complete an adapter folder with concept.yaml and provenance.json; what becomes the stage's artifact."""
    job = session.job
    if fingerprint(job.concept.folder) != job.data:
        raise PureCCError(f"{job.concept.folder} changed while it was trained on: run the command again")
    provenance = Provenance(
        concept=job.name,
        stage=stage.name,
        key=stage.key,
        seed=job.profile.seed,
        data={"sha256": job.data, "dvc": job.data_version, "pointer": job.data_pointer},
        base={"path": job.profile.base.path, "fingerprint": job.base},
        profile={"name": job.profile.name, "digest": job.profile.digest()},
        code=job.code,
        run=run_id,
        parents=(*(learned.digest for learned in job.earlier), *parents),
        libraries=library_versions(),
    )
    complete = work / "complete"
    with atomic_folder(complete) as folder:
        for file in adapter.iterdir():
            if file.name != MANIFEST:
                shutil.copy2(file, folder / file.name)
        shutil.copy2(job.concept.folder / "concept.yaml", folder / "concept.yaml")
        write_json(folder / PROVENANCE, provenance.to_json())
    return {"adapter": complete, "history.jsonl": work / "history.jsonl"}, {"run": run_id}


def _noted(session: Session, artifact: Artifact) -> Artifact:
    """Record in the parent run where a stage's result comes from."""
    stage = artifact.stage
    session.tag(f"stage/{stage.name}", stage.key)
    session.tag(f"stage/{stage.name}/run", str(artifact.facts.get("run")))
    if artifact.reused:
        stderr.print(f"{stage.name}: unchanged, the kept result is used", style="dim")
    return artifact
