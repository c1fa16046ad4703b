"""Starting a customize: what is unchanged is said at once, without Prefect or torch; the rest goes through the flow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from components.benchmark.plan import Plan
from components.files import MANIFEST
from components.settings import project_root
from components.tracking import promotion, registry
from components.tracking.registry import content_digest
from components.tracking.store import Store, is_empty, open_store
from flows import stages
from flows.console import stderr
from flows.engine import connected, prefect_server
from flows.job import Job, load_job
from flows.outcome import GatesRefused, Outcome
from flows.stages import Artifact


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

        with connected(server):
            return Outcome(**flow(name, profile, list(overrides)))


def benchmark(title: str, plan: Plan, target: Path, *, workers: int, facts: dict[str, str]) -> dict[str, str]:
    """Measure what the folder `target` lacks of a benchmark's plan, and write its report; returns its files."""
    root = project_root()
    for name in plan.concepts:
        fetch_data(root, name)
    with prefect_server(root) as server:
        from flows.benchmark import benchmark as flow
        from flows.benchmark import cells_at_once

        with connected(server):
            flow = flow.with_options(task_runner=cells_at_once(workers))
            return flow(title, plan.model_dump(mode="json"), str(target.resolve()), facts)


def fetch_data(root: Path, name: str) -> None:
    """Bring the data of a concept that data.dvc records and that is not here yet, as in a fresh clone.

    Raises:
        InvalidInput: the remote does not give it.
    """
    if (root / "data" / "concepts" / name).exists() or not (root / "data.dvc").is_file():
        return
    from components.concepts import versions

    if name in versions.per_concept_digests(root):
        stderr.print(f"fetching the data of {name} (dvc pull) ...", style="dim")
        versions.pull(root, name)


def unchanged(job: Job) -> Outcome | None:
    """The outcome that a run would come to again, or None if there is something to do.

    Every stage has to have kept its result, whole; and the registry has to hold that adapter, whole, with the judgement
    that these gates against this champion give.
    """
    if is_empty(job.root):
        return None
    kept = _kept(job)
    if kept is None:
        return None
    adapter, evaluation = kept
    store = open_store(job.root)
    digest = content_digest(adapter.folder / "adapter")
    version = registry.by_digest(store, job.name, digest)
    if version is None or version.status == "not judged":
        return None
    champion = registry.by_alias(store, job.name)
    is_champion = champion is not None and champion.number == version.number
    rolled_back = "promotion/rolled_back" in version.tags
    if is_champion or rolled_back:
        against = version.tags.get("gate/against") or None
    else:
        against = champion.tags.get("adapter/digest") if champion else None
    key = promotion.judgement_key(evaluation.facts["metrics"], job.profile.gates, against)
    if version.tags.get("gate/key") != key or not all(check.ok for check in _verified(store, version)):
        return None
    refused = version.status == "refused"
    if not (is_champion or rolled_back or refused):
        return None  # passed, but another version took its place: it is to be judged and promoted again
    same = f"data, base, profile and method are those of version {version.number}"
    if refused:
        reason = version.tags.get("gate/refused", "")
    elif is_champion:
        reason = f"nothing to do: {same}, the champion"
    else:
        mend = f"`purecc models promote {job.name} {version.number}` brings it back"
        reason = f"nothing to do: {same}, which was rolled back from ({mend})"
    run = version.tags.get("run")
    report = job.root / ".purecc" / "reports" / job.name / f"{run}.html"
    return Outcome(
        name=job.name,
        status="unchanged",
        version=version.number,
        champion=champion.number if champion else None,
        reason=reason,
        run=run,
        report=str(report) if report.is_file() else None,
        profile=job.profile.name,
        gates=json.loads(version.tags.get("gate/table", "[]")),
        metrics=evaluation.facts["metrics"],
        reused=["validation", *(["extractor"] if job.trains_extractor else []), "pure-learning", "evaluation"],
        refused=refused,
    )


def _verified(store: Store, version: registry.Version) -> list[promotion.Check]:
    return promotion.verify(store, version.concept, version.number)


def _kept(job: Job) -> tuple[Artifact, Artifact] | None:
    """The kept results of stage 2 and of the evaluation, if those of all stages are whole."""
    if stages.find(job.validation()) is None:
        return None
    parent = None
    if job.trains_extractor:
        extractor = stages.find(job.extractor())
        if extractor is None or not (extractor.folder / "adapter" / MANIFEST).is_file():
            return None
        parent = content_digest(extractor.folder / "adapter")
    adapter = stages.find(job.pure(parent))
    if adapter is None:
        return None
    evaluation = stages.find(job.evaluation(content_digest(adapter.folder / "adapter")))
    return None if evaluation is None else (adapter, evaluation)
