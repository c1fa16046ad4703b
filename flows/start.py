"""Starting a customize: what is unchanged is said at once, without Prefect or torch; the rest goes through the flow."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from components import planning
from components.benchmark.plan import Plan
from components.errors import InvalidInput
from components.settings import load_profile, project_root
from components.tracking import promotion, registry
from components.tracking.locks import file_lock
from components.tracking.registry import content_digest
from components.tracking.store import is_empty, open_store
from flows import recovery, stages
from flows.console import stderr
from flows.engine import connected, connected_with_threads, prefect_server, prepare_environment
from flows.job import Job, load_job
from flows.locks import open_shared_store
from flows.outcome import GatesRefused, Outcome

_FETCHING = "data"  # the lock of those who fetch data


def customize(name: str, profile: str, overrides: Sequence[str] = (), *, anew: bool = False) -> Outcome:
    """Customize a concept, or say why there is nothing to do.

    Args:
        anew: go through the flow even if nothing changed (its stages still use what they kept).

    Raises:
        GatesRefused: the adapter was refused.
    """
    job = load_job(name, profile, overrides)
    known = None if anew else unchanged(job)
    if known is not None:
        if known.refused:
            raise GatesRefused(known)
        return known
    with prefect_server(job.root) as server:  # boots while torch and the others are imported
        from flows.customize import customize as flow

        recovery.recover(job.root)
        open_shared_store(job.root)  # a project's first makes its tables, as the server makes its own meanwhile
        with connected(server):
            recovery.close_dead_flow_runs()
            return Outcome(**flow(name, profile, list(overrides)))


def benchmark(title: str, plan: Plan, target: Path, *, workers: int, facts: dict[str, str]) -> dict[str, str]:
    """Measure what the folder `target` lacks of a benchmark's plan, and write its report; returns its files."""
    with prefect_server(project_root()) as server, connected_with_threads(server):
        from flows.benchmark import benchmark as flow
        from flows.benchmark import cells_at_once

        flow = flow.with_options(task_runner=cells_at_once(workers))
        return flow(title, plan.model_dump(mode="json"), str(target.resolve()), facts)


def continual(
    names: Sequence[str] | None,
    profile: str,
    overrides: Sequence[str] = (),
    *,
    mode: Literal["independent", "sequential"] = "independent",
    dispatch: Literal["process", "workers"] = "process",
) -> dict[str, Any]:
    """Run over many concepts; where there is nothing to do, say so at once.

    Returns:
        the `RunSummary`, as JSON, also of a run that failed.

    Raises:
        WrongUse: a name that is not known.
        AlreadyRunning: another such run is under way.
    """
    from flows import concept_runs, together
    from flows.plan import make_plan
    from flows.run_summary import RunFailed, RunSummary

    root = project_root()
    plan = make_plan(profile, overrides, names)
    if mode == "independent" and not planning.to_do(plan):
        results = [concept_runs.settle(decision) for decision in plan]
        nothing: tuple[dict[str, Any], None] = {}, None
        known = nothing if is_empty(root) else together.known(profile, overrides, open_store(root))
        if known is not None:
            _close_what_is_dead(root)
            settings = load_profile(profile, overrides)
            return RunSummary(mode, results, settings.continual.minimum_success, *known).to_json()
    with prefect_server(root) as server:
        from flows.continual import continual as flow

        with connected(server):
            try:
                facts: dict[str, Any] = flow(names, profile, list(overrides), mode, dispatch)
            except RunFailed as failed:
                return dict(failed.summary)
            return facts


def _close_what_is_dead(root: Path) -> None:
    """What an earlier run left when it died at its very end; without starting a server for it."""
    recovery.recover(root)
    if os.environ.get("PREFECT_API_URL"):
        prepare_environment(root)
        recovery.close_dead_flow_runs()


def trigger_retrain(since: str, profile: str, overrides: Sequence[str], mode: str, dispatch: str) -> dict[str, Any]:
    """Ask the server that `PREFECT_API_URL` names to run the deployment `retrain/retrain`; does not wait for it.

    Raises:
        InvalidInput: no server is named, or it has no such deployment.
    """
    if not os.environ.get("PREFECT_API_URL"):
        mend = "set it to the server's address, or leave out --deployment to train here"
        raise InvalidInput("no server to trigger", field="PREFECT_API_URL", mend=mend)
    prepare_environment(project_root())
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    parameters = {"since": since, "profile": profile, "overrides": list(overrides), "mode": mode, "dispatch": dispatch}
    try:
        run = run_deployment("retrain/retrain", parameters=parameters, timeout=0)
    except ObjectNotFound as error:
        mend = "deploy it: prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml"
        raise InvalidInput(
            "the server has no deployment retrain/retrain", field="PREFECT_API_URL", mend=mend
        ) from error
    return {"deployment": "retrain/retrain", "flow_run": str(run.id), "name": run.name, "since": since}


def fetch_data(root: Path, name: str) -> None:
    """Bring the data of a concept that data.dvc records and that is not here yet, as in a fresh clone.

    Workers may share the project's folders: whoever fetches holds a lock, and whoever comes then waits, for what stands
    there may be half of it.

    Raises:
        InvalidInput: the remote does not give it.
        LockNotTaken: another process has been fetching for an hour.
    """
    folder, locks = root / "data" / "concepts" / name, root / ".purecc" / "locks"
    nobody_fetched = not any(locks.glob(f"{_FETCHING}*"))
    if (folder.exists() and nobody_fetched) or not (root / "data.dvc").is_file():
        return
    begun = locks / f"{_FETCHING}-{name}"  # left by one that was killed while it fetched
    with file_lock(locks)(_FETCHING, timeout=3600):
        if folder.exists() and not begun.exists():
            return
        from components.concepts import versions

        if name in versions.per_concept_digests(root):
            stderr.print(f"fetching the data of {name} (dvc pull) ...", style="dim")
            begun.touch()
            versions.pull(root, name)
            begun.unlink()


def unchanged(job: Job) -> Outcome | None:
    """The outcome that a run would come to again, or None if there is something to do.

    The registry has to hold a settled version of these inputs, whole (see `components.planning`); a stage's result that
    is kept here has to be whole as well.
    """
    if is_empty(job.root):
        return None
    store = open_store(job.root)
    decision = planning.decide(job.inputs, registry.versions(store, job.name), planning.Failures(), quarantine_after=1)
    if decision.action != "reuse" or decision.version is None or _altered(job):
        return None
    if not all(check.ok for check in promotion.verify(store, job.name, decision.version)):
        return None
    version = registry.version(store, job.name, decision.version)
    refused = version.status == "refused"
    run = version.tags.get("run")
    report = job.root / ".purecc" / "reports" / job.name / f"{run}.html"
    return Outcome(
        name=job.name,
        status="unchanged",
        version=version.number,
        champion=registry.aliases(store, job.name).get(registry.CHAMPION),
        reason=version.tags.get("gate/refused", "") if refused else f"nothing to do: {decision.reason}",
        run=run,
        report=str(report) if report.is_file() else None,
        profile=job.profile.name,
        gates=json.loads(version.tags.get("gate/table", "[]")),
        metrics=json.loads(version.tags.get("evaluation/metrics", "{}")),
        reused=["validation", *(["extractor"] if job.trains_extractor else []), "pure-learning", "evaluation"],
        refused=refused,
    )


def _altered(job: Job) -> bool:
    """Whether the kept result of a stage is there and not whole; one that is not there is none that is missed."""
    first = [job.validation(), *([job.extractor()] if job.trains_extractor else [])]
    if any(stage.folder.is_dir() and stages.find(stage) is None for stage in first):
        return True
    parent = None
    if job.trains_extractor:
        adapter = job.extractor().folder / "adapter"
        if not adapter.is_dir():
            return False
        parent = content_digest(adapter)
    pure = job.pure(parent)
    if not pure.folder.is_dir():
        return False
    if stages.find(pure) is None:
        return True
    evaluation = job.evaluation(content_digest(pure.folder / "adapter"))
    return evaluation.folder.is_dir() and stages.find(evaluation) is None
