"""Concepts learned one after the other: concept k on the model that has the ones before it.

After each concept every one of the sequence is evaluated on the model as it is then: the row R[i, .] of the matrix from
which forgetting is judged. The adapters of a sequence stand for each other, not for themselves: they are registered
together, as a bundle.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import PureCCError
from components.files import digest_of
from components.planning import Decision
from components.secrets import redact
from components.settings import Profile, load_profile
from components.tracking import bundles
from components.tracking.failures import failures
from components.tracking.registry import content_digest
from flows import stages, tasks
from flows.concept_runs import Budget
from flows.console import finite, stderr
from flows.job import Job, Learned, load_job
from flows.run_record import RunRecord
from flows.run_summary import ConceptResult, RunSummary
from flows.session import open_session
from flows.stages import Artifact, Stage

if TYPE_CHECKING:
    from components.evaluation.learned import LearnedModel

logger = logging.getLogger(__name__)

_VERSION = 1  # raised when a row comes to other values from the same inputs


@dataclass
class _Course:
    """How far a sequence has come.

    Attributes:
        jobs: the concepts that are to be learned, by name; those that failed are taken out.
        rows: after each learned concept: concept -> its metrics on the model as it is then.
    """

    jobs: dict[str, Job]
    learned: list[Learned] = field(default_factory=list)
    rows: list[dict[str, Mapping[str, float]]] = field(default_factory=list)


def learn(
    plan: Sequence[Decision], order: Sequence[str] | None, profile: str, overrides: Sequence[str], record: RunRecord
) -> RunSummary:
    """Learn the concepts of a plan in order, judge what each does to the others, and register the bundle.

    Args:
        order: names in the order in which they are learned; None: by name.
    """
    settings = load_profile(profile, overrides)
    decisions = {decision.name: decision for decision in plan if decision.action != "retire"}
    results: dict[str, ConceptResult] = {}
    jobs: dict[str, Job] = {}
    for name in order or sorted(decisions):
        if name in decisions:
            try:
                jobs[name] = load_job(name, profile, overrides)
            except PureCCError as error:
                results[name] = ConceptResult(name, "failed", redact(str(error)))
                record.note(results[name])
    course = _Course(jobs)
    budget = Budget(settings.continual)
    for name in list(jobs):
        results[name] = _one(name, course, budget, record)
        record.note(results[name])
    checks, bundle = _conclude(course, settings, results, record) if course.learned else ({}, None)
    listed = [results[name] for name in (order or sorted(decisions)) if name in results]
    return RunSummary(
        "sequential", listed, settings.continual.minimum_success, checks, bundle, report=checks.get("report")
    )


def _one(name: str, course: _Course, budget: Budget, record: RunRecord) -> ConceptResult:
    """Learn one concept and evaluate the row; whatever goes wrong takes this concept out of the sequence."""
    if (why := budget.exhausted()) is not None:
        del course.jobs[name]
        return ConceptResult(name, "left", why)
    job = replace(course.jobs[name], earlier=tuple(course.learned))
    failed = failures(record.store, name, job.inputs.key)
    if failed.count >= job.profile.continual.quarantine_after:
        del course.jobs[name]
        return ConceptResult(name, "quarantined", f"failed {failed.count} times at this place: {failed.reason}")
    stderr.print(f"{name}, after {len(course.learned)} others ...", style="bold")
    from components.backbones.device import gpus_of

    begun, gpus = time.monotonic(), gpus_of(job.profile.base)
    try:
        adapter, reused = _train(job)
        learned = Learned(name, content_digest(adapter.folder / "adapter"), adapter.folder / "adapter")
        row = _row([*course.learned, learned], course.jobs, record)
    except Exception as error:  # noqa: BLE001  (the failure of one concept is its own)
        del course.jobs[name]
        reason = redact(str(error) if isinstance(error, PureCCError) else f"{type(error).__name__}: {error}")
        logger.warning("%s failed, the others go on: %s", name, reason)
        return _timed(ConceptResult(name, "failed", reason), begun, budget, gpus)
    course.learned.append(learned)
    course.rows.append(row)
    what = "unchanged, the kept result is used" if reused else f"learned on top of {len(course.learned) - 1} others"
    return _timed(ConceptResult(name, "reused" if reused else "learned", what), begun, budget, gpus)


def _timed(result: ConceptResult, begun: float, budget: Budget, gpus: int) -> ConceptResult:
    seconds = time.monotonic() - begun
    gpu_seconds = seconds * gpus
    budget.gpu_seconds += gpu_seconds
    return replace(result, seconds=seconds, gpu_seconds=gpu_seconds)


def _train(job: Job) -> tuple[Artifact, bool]:
    """Both stages on the model that has the concepts before; whether nothing was to be done."""
    if (kept := _kept(job)) is not None:
        return kept, True
    with open_session(job) as session:
        tasks.validate(session)
        extractor = tasks.train_extractor(session) if job.trains_extractor else None
        return tasks.train_pure(session, extractor), False


def _kept(job: Job) -> Artifact | None:
    parent = None
    if job.trains_extractor:
        extractor = stages.find(job.extractor())
        if extractor is None:
            return None
        parent = content_digest(extractor.folder / "adapter")
    return stages.find(job.pure(parent))


def _row(learned: Sequence[Learned], jobs: Mapping[str, Job], record: RunRecord) -> dict[str, Mapping[str, float]]:
    """Every concept of the sequence on the model that has learned these."""
    wanted = {name: _row_stage(job, learned) for name, job in jobs.items()}
    found = {name: stages.find(stage) for name, stage in wanted.items()}
    if any(artifact is None for artifact in found.values()):
        from components.evaluation.learned import LearnedModel

        first = next(iter(jobs.values()))
        model = LearnedModel({each.name: each.folder for each in learned}, first.profile, first.root)
        for name, job in jobs.items():
            stderr.print(f"evaluating {name} after {learned[-1].name} ...", style="dim")
            found[name] = stages.run(wanted[name], functools.partial(_evaluated, model, job))
    return {name: artifact.facts["metrics"] for name, artifact in found.items() if artifact is not None}


def _evaluated(model: LearnedModel, job: Job, work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
    result = model.evaluate(job.concept, job.profile, work / "evaluation", job.root / ".purecc" / "cache" / "originals")
    return {"evaluation": work / "evaluation"}, {"metrics": result.metrics}


def _row_stage(job: Job, learned: Sequence[Learned]) -> Stage:
    """The evaluation of one concept on a model of several, kept by what that model is."""
    digests = [each.digest for each in learned]
    own = next((each.digest for each in learned if each.name == job.name), None)
    adapter = digest_of({"version": _VERSION, "model": digests, "embeddings": own})
    return replace(job, earlier=()).evaluation(adapter)


def _conclude(
    course: _Course, settings: Profile, results: Mapping[str, ConceptResult], record: RunRecord
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Matrix, figures, report, gate and bundle of what was learned."""
    from components.evaluation.forgetting import Forgetting, prior_preservation
    from components.evaluation.sequence_report import write_sequence_report

    names = [each.name for each in course.learned]
    metric = settings.continual.metric
    forgetting = Forgetting.of_rows(
        names, [[row.get(name, {}).get(metric, math.nan) for name in names] for row in course.rows]
    )
    refused = forgetting.refusal(settings.continual.maximum_forgetting)
    preservation = [prior_preservation({name: row.get(name, {}) for name in names}) for row in course.rows]
    for step, values in enumerate(preservation):
        record.metrics({f"continual/{key}": value for key, value in values.items()}, step)
    record.metrics(forgetting.metrics)
    record.artifact("forgetting.json", forgetting.to_json())
    (record.folder / "matrix.csv").write_text(forgetting.to_csv(), encoding="utf-8")
    record.file(record.folder / "matrix.csv")
    report = record.folder / "report.html"
    write_sequence_report(
        report,
        forgetting=forgetting,
        metric=metric,
        preservation=preservation,
        refused=refused,
        facts={
            "order": ", ".join(names),
            "concepts before": settings.continual.earlier,
            "profile": f"{settings.name} ({settings.digest()})",
            "seed": str(settings.seed),
            "MLflow run": record.run_id,
        },
        left_out={name: result.reason for name, result in results.items() if name not in names},
    )
    record.file(report)
    pins = [{"name": each.name, "version": None, "adapter": each.digest} for each in course.learned]
    base = next(iter(course.jobs.values())).base
    facts = {"mode": "sequential", "pins": pins, "base": base, "rows": forgetting.to_json(), "refused": refused}
    content = {
        "mode": "sequential",
        "earlier": settings.continual.earlier,
        "base": {"path": settings.base.path, "fingerprint": base},
        "concepts": pins,
        "checks": finite(forgetting.metrics),
    }
    folders = {each.name: each.folder for each in course.learned}
    version = bundles.register(
        record.store, record.run_id, key=digest_of(facts)[:40], content=content, adapters=folders, refused=refused
    )
    checks = {"refused": refused, "report": str(report), **forgetting.to_json()}
    return checks, {"version": version.number, "status": version.status, "concepts": pins}
