"""The end of a customize: champion's metrics, gates, report, registered version, alias."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.concepts.texts import PLACEHOLDER
from components.errors import InvalidInput
from components.tracking import promotion, registry, runs, signing
from components.tracking.gates import GateReport, judge
from components.tracking.registry import Version
from flows import stages
from flows.console import stderr
from flows.job import Job
from flows.outcome import Outcome
from flows.session import Session
from flows.stages import Artifact

logger = logging.getLogger(__name__)

Evaluate = Callable[[Session, Path], Artifact]


def conclude(
    session: Session, extractor: Artifact | None, adapter: Artifact, evaluation: Artifact, evaluate: Evaluate
) -> Outcome:
    """Register, judge, report, and promote what passed; judged again if another run promotes meanwhile."""
    version = _register(session, adapter, evaluation)
    artifacts = (extractor, adapter, evaluation)

    def judge_against(champion: Version | None) -> GateReport:
        gates = _judge(session, version, evaluation, evaluate, champion)
        write_report(session, version, gates, artifacts)  # before anything is settled: a full disk leaves it to be done
        _settle(session, version)
        return gates

    try:
        gates, replaced = promotion.promote_best(
            session.store, session.job.name, version.number, judge_against, public_key=_public_key(session.job)
        )
    except promotion.PromotionRefused as refusal:  # by a blessing other than the gates
        version = registry.version(session.store, session.job.name, version.number)
        gates = GateReport.from_json(json.loads(version.tags["gate/table"]))
        return _finish(session, "refused", version, gates, artifacts, None, refusal=str(refusal))
    status = "promoted" if gates.passed else "refused"
    return _finish(session, status, version, gates, artifacts, replaced)


def bless(
    session: Session, extractor: Artifact | None, adapter: Artifact, evaluation: Artifact, evaluate: Evaluate
) -> tuple[Version, GateReport]:
    """Register and judge without promoting, and show the report: what a person is asked about."""
    version = _register(session, adapter, evaluation)
    champion = registry.by_alias(session.store, session.job.name)
    against = champion if champion is not None and champion.number != version.number else None
    gates = _judge(session, version, evaluation, evaluate, against)
    path = write_report(session, version, gates, (extractor, adapter, evaluation))
    _show_in_prefect(session.job.name, gates, path)  # the run pauses next, and may stay so for days
    _settle(session, version)
    return registry.version(session.store, session.job.name, version.number), gates


def _public_key(job: Job) -> Path | None:
    return signing.policy_key(job.root, job.profile.promotion.public_key)


def _register(session: Session, adapter: Artifact, evaluation: Artifact) -> Version:
    job = session.job
    tags = {
        "run": session.run_id,
        "data/fingerprint": job.data,
        "data/dvc": job.data_version,
        "base/fingerprint": job.base,
        "profile/name": job.profile.name,
        "profile/digest": job.profile.digest(),
        "method/key": adapter.stage.key,
        "evaluation/key": evaluation.stage.key,
        "evaluation/metrics": json.dumps(evaluation.facts["metrics"], separators=(",", ":")),
    }
    sampling = job.profile.evaluation.sampling.model_dump(mode="json")
    settings = job.profile.base.model_dump(mode="json", exclude={"threads"})  # a consumer's machine has its own
    base = {"settings": settings, "fingerprint": job.base, "sampling": sampling}
    with tempfile.TemporaryDirectory(prefix="purecc-") as folder:
        return registry.register(
            session.store,
            job.name,
            adapter.folder / "adapter",
            run_id=session.run_id,
            base=base,
            tags=tags,
            recording=_recording(job, evaluation.folder / "evaluation", Path(folder) / "recording"),
        )


def _recording(job: Job, evaluation: Path, folder: Path) -> Path | None:
    """The first picture of the evaluation that shows the concept, to travel with the model."""
    from components.evaluation.result import EvaluationResult
    from components.serving.recording import write_recording
    from components.serving.requests import ImageRequest

    sampling = job.profile.evaluation.sampling
    for row in EvaluationResult.from_json(evaluation).rows:
        if row["has_concept"]:
            request = ImageRequest(
                prompt=row["complete"].replace(PLACEHOLDER, f"<{job.name}>"),
                seed=row["seed"],
                steps=sampling.steps,
                guidance=sampling.guidance_scale,
            )
            return write_recording(folder, request, evaluation / row["images"]["custom"])
    return None


def _judge(
    session: Session, version: Version, evaluation: Artifact, evaluate: Evaluate, against: Version | None
) -> GateReport:
    """Both blessings: the gates against the champion, then, if they are passed, a fresh process that serves it."""
    settings, job = session.job.profile.promotion, session.job
    metrics, gates = evaluation.facts["metrics"], job.gates
    report = judge(metrics, gates, champion_metrics(session, against, evaluate))
    digest = against.tags.get("adapter/digest") if against else None
    key = promotion.judgement_key(metrics, gates, digest)
    requires = [name for name in ("servability", "approval") if getattr(settings, name)]
    promotion.record_judgement(
        session.store, job.name, version.number, report, key=key, against=digest, requires=requires
    )
    if report.passed and settings.servability:
        from components.tracking import servability

        stderr.print("a fresh process loads and draws with it ...", style="dim")
        servability.bless(session.store, job.name, version.number, settings, session.fresh)
    return report


def _settle(session: Session, version: Version) -> None:
    """Only a judged version says what it was made from: the planner and the next run take it as settled."""
    registry.set_tags(session.store, session.job.name, version.number, session.job.inputs.tags)


def champion_metrics(session: Session, champion: Version | None, evaluate: Evaluate) -> Mapping[str, float] | None:
    """The champion's metrics under this job's data, prompts and seeds; evaluated again where they are not kept."""
    gates = session.job.gates.values()
    if champion is None or all(gate.not_worse_by is None for gate in gates):
        return None
    kept = stages.find(session.job.evaluation(champion.tags["adapter/digest"]))
    if kept is None:
        with registry.adapter_folder(session.store, session.job.name, champion.number) as folder:
            try:
                kept = evaluate(session, folder)
            except InvalidInput as error:  # of another base: nothing that could be compared
                logger.warning("version %d, the champion, cannot be compared with: %s", champion.number, error)
                return None
    return dict(kept.facts["metrics"])


def _finish(
    session: Session,
    status: Any,
    version: Version,
    gates: GateReport,
    artifacts: tuple[Artifact | None, Artifact, Artifact],
    replaced: int | None,
    refusal: str | None = None,
) -> Outcome:
    job = session.job
    path = report_path(job, session.run_id)
    _show_in_prefect(job.name, gates, path)
    session.tag("gate/status", "passed" if gates.passed else "refused")
    session.tag("registry/version", str(version.number))
    if not gates.passed:
        session.tag("gate/refused", gates.refusal)
    if refusal is not None:
        session.tag("promotion/refused", refusal)
    champion = registry.aliases(session.store, job.name).get(registry.CHAMPION)
    return Outcome(
        name=job.name,
        status=status,
        version=version.number,
        champion=champion,
        reason=refusal or gates.refusal or "every gate is passed",
        run=session.run_id,
        report=str(path),
        profile=job.profile.name,
        replaced=replaced,
        gates=gates.to_json(),
        metrics=artifacts[2].facts["metrics"],
        reused=[each.stage.name for each in artifacts if each is not None and each.reused],
        refused=status == "refused",
    )


def report_path(job: Job, run_id: str) -> Path:
    return job.root / ".purecc" / "reports" / job.name / f"{run_id}.html"


def write_report(
    session: Session,
    version: Version,
    gates: GateReport,
    artifacts: tuple[Artifact | None, Artifact, Artifact],
) -> Path:
    """Write the run's HTML report, and keep it with the run in MLflow."""
    from components.evaluation.report import write_report as write
    from components.evaluation.result import EvaluationResult

    job = session.job
    extractor, adapter, evaluation = artifacts
    history = {"pure-learning": runs.read_history(adapter.folder / "history.jsonl")}
    if extractor is not None:
        history["extractor"] = runs.read_history(extractor.folder / "history.jsonl")
    path = report_path(job, session.run_id)
    write(
        path,
        concept=job.concept,
        result=EvaluationResult.from_json(evaluation.folder / "evaluation"),
        history=history,
        gates=gates.to_json(),
        lineage={
            "registered as": f"{registry.model_name(job.name)} version {version.number}",
            "adapter": str(version.tags.get("adapter/digest")),
            "data": f"{job.data} (DVC {job.data_version}, {job.data_pointer})",
            "base": f"{job.profile.base.path} ({job.base})",
            "profile": f"{job.profile.name} ({job.profile.digest()})",
            "code": f"{job.code.commit or 'no git checkout'}{' with local changes' if job.code.dirty else ''}",
            "seed": str(job.profile.seed),
            "MLflow run": session.run_id,
        },
    )
    session.store.client.log_artifact(session.run_id, str(path), "report")
    return path


def _show_in_prefect(name: str, gates: GateReport, report: Path) -> None:
    """The gate table and the report's link as artifacts of the flow run; outside of one there is nowhere to show."""
    from prefect.artifacts import create_link_artifact, create_table_artifact
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    key = "".join(character if character.isalnum() else "-" for character in name.lower())
    table = [{field: str(value) for field, value in row.items()} for row in gates.to_json()]
    create_table_artifact(table or [{"metric": "none"}], key=f"gates-{key}", description=f"Gates of {name}")
    create_link_artifact(report.as_uri(), link_text="report", key=f"report-{key}", description=f"Report of {name}")
