"""Bringing about a plan, concept by concept: in this process, or one flow run per concept on workers.

The failure of one concept is its own: it is recorded with its reason and the others go on. A cap on wall-clock or GPU
seconds begins no new concept; what was begun is finished.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from components.errors import PureCCError
from components.planning import Decision
from components.secrets import redact
from components.settings import ContinualSettings, load_profile, project_root
from components.tracking import retirement, runs
from components.tracking.store import is_away, is_empty, open_store
from flows import recovery
from flows.console import stderr
from flows.job import load_job
from flows.locks import open_shared_store
from flows.outcome import GatesRefused
from flows.plan import decide
from flows.run_summary import ConceptResult, Status

logger = logging.getLogger(__name__)

Dispatch = Literal["process", "workers"]
Note = Callable[[ConceptResult], None]

DEPLOYMENT = "customize/customize"
_POLL_SECONDS = 2.0
_LOOK_SECONDS = 20.0  # between two looks for flow runs whose worker died
_PATIENCE = 300.0  # seconds for which a server may be away, as while it is restarted


@dataclass
class Budget:
    """What the caps leave."""

    settings: ContinualSettings
    begun: float = field(default_factory=time.monotonic)
    gpu_seconds: float = 0.0

    def exhausted(self) -> str | None:
        """Why no new work is begun, or None."""
        seconds = time.monotonic() - self.begun
        if self.settings.wall_clock_seconds is not None and seconds >= self.settings.wall_clock_seconds:
            return _cap("wall-clock", seconds, self.settings.wall_clock_seconds)
        if self.settings.gpu_seconds is not None and self.gpu_seconds >= self.settings.gpu_seconds:
            return _cap("GPU", self.gpu_seconds, self.settings.gpu_seconds)
        return None


def _cap(what: str, used: float, cap: float) -> str:
    return f"not begun: {used:.0f} {what} seconds are used, the cap is {cap:g}; the next run goes on here"


def bring_about(
    plan: Sequence[Decision],
    profile: str,
    overrides: Sequence[str],
    dispatch: Dispatch,
    note: Note,
) -> list[ConceptResult]:
    """Do what the plan says; one result per decision, in its order.

    Args:
        note: told of each result as soon as it is there.
    """
    budget = Budget(load_profile(profile, overrides).continual)
    settled = {decision.name: settle(decision) for decision in plan if decision.action != "train"}
    for result in settled.values():
        note(result)
    wanted = [decision for decision in plan if decision.action == "train"]
    if dispatch == "workers":
        trained = _on_workers(wanted, profile, overrides, budget, note)
    else:
        trained = {}
        for decision in wanted:
            trained[decision.name] = _here(decision.name, profile, overrides, budget)
            note(trained[decision.name])
    return [(settled | trained)[decision.name] for decision in plan]


def settle(decision: Decision) -> ConceptResult:
    """The result of a decision that asks for no training."""
    name, reason = decision.name, decision.reason
    if decision.action == "retire" and decision.version is not None:
        retirement.retire(open_shared_store(project_root()), name, decision.version, reason)
        return ConceptResult(name, "retired", reason, decision.version)
    if decision.action == "quarantined":
        return ConceptResult(name, "quarantined", reason)
    return ConceptResult(name, "refused" if decision.refused else "reused", reason, decision.version)


def _here(name: str, profile: str, overrides: Sequence[str], budget: Budget) -> ConceptResult:
    """Customize in this process; whatever goes wrong becomes the result."""
    if (why := budget.exhausted()) is not None:
        return ConceptResult(name, "left", why)
    from components.backbones.device import gpus_of
    from flows.customize import customize

    stderr.print(f"{name} ...", style="bold")
    begun = time.monotonic()
    state = customize(name, profile, list(overrides), return_state=True)
    found = state.result(raise_on_failure=False)
    seconds = time.monotonic() - begun
    gpu_seconds = seconds * gpus_of(load_profile(profile, overrides).base)
    budget.gpu_seconds += gpu_seconds
    if isinstance(found, BaseException):
        result = replace(_unsuccessful(name, found), seconds=seconds, gpu_seconds=gpu_seconds)
        del found, state
        _free_memory()
        return result
    return ConceptResult(name, "promoted", str(found["reason"]), found["version"], seconds, gpu_seconds)


def _unsuccessful(name: str, error: BaseException) -> ConceptResult:
    if isinstance(error, GatesRefused):
        return ConceptResult(name, "refused", error.outcome.reason, error.outcome.version)
    reason = redact(str(error) if isinstance(error, PureCCError) else f"{type(error).__name__}: {error}")
    logger.warning("%s failed, the others go on: %s", name, reason)
    return ConceptResult(name, "failed", reason)


def _free_memory() -> None:
    """What a failed training left in memory is not the next one's to pay for."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_workers(
    wanted: Sequence[Decision], profile: str, overrides: Sequence[str], budget: Budget, note: Note
) -> dict[str, ConceptResult]:
    """One flow run per concept; what each came to is read from the registry, nothing big travels.

    A flow run of the same inputs that is under way (of a run of continual that died) is waited for, not doubled. One
    whose process died is a failure: the next run does it again.
    """
    from prefect.client.orchestration import get_client

    results: dict[str, ConceptResult] = {}
    with get_client(sync_client=True) as client:
        waiting = {decision.name: _patiently(_submit, client, decision.name, profile, overrides) for decision in wanted}
        looked = time.monotonic()
        while waiting:
            why = budget.exhausted()
            if time.monotonic() - looked > _LOOK_SECONDS:
                _patiently(recovery.close_dead_flow_runs)
                looked = time.monotonic()
            for name, run_id in list(waiting.items()):
                run = _patiently(client.read_flow_run, run_id)
                if why is not None and run.state is not None and run.state.is_scheduled():
                    _cancel(client, run_id)
                    results[name] = ConceptResult(name, "left", why)
                elif run.state is not None and run.state.is_final():
                    results[name] = _patiently(_came_to, name, profile, overrides, run)
                    budget.gpu_seconds += results[name].gpu_seconds
                else:
                    continue
                del waiting[name]
                _patiently(note, results[name])
            if waiting:
                time.sleep(_POLL_SECONDS)
    return results


def _submit(client: Any, name: str, profile: str, overrides: Sequence[str]) -> Any:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        FlowRunFilterTags,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.deployments import run_deployment

    tag = f"inputs:{load_job(name, profile, overrides).inputs.key}"
    under_way = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING])
    same = FlowRunFilter(state=FlowRunFilterState(type=under_way), tags=FlowRunFilterTags(all_=[tag]))
    if found := client.read_flow_runs(flow_run_filter=same, limit=1):
        return found[0].id
    parameters = {"name": name, "profile": profile, "overrides": list(overrides)}
    return run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=name, tags=[tag]).id


def _cancel(client: Any, run_id: Any) -> None:
    from prefect.states import Cancelled

    client.set_flow_run_state(run_id, Cancelled(message="A cap of the continual run was reached."))


def _came_to(name: str, profile: str, overrides: Sequence[str], run: Any) -> ConceptResult:
    """What a flow run that ended came to, as the tracking store tells it."""
    root = project_root()
    store = None if is_empty(root) else open_store(root)
    seconds = run.total_run_time.total_seconds()
    gpu_seconds = 0.0 if store is None else runs.gpu_seconds(store, name, str(run.id))
    decision = decide(load_job(name, profile, overrides), store)
    if decision.action == "reuse":
        status: Status = "refused" if decision.refused else "promoted"
        return ConceptResult(name, status, decision.reason, decision.version, seconds, gpu_seconds)
    reason = run.state.message or f"its flow run ended as {run.state.name}"
    return ConceptResult(name, "failed", reason, seconds=seconds, gpu_seconds=gpu_seconds)


def _patiently(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, again and again while a server does not answer; its restart is no reason to give up what workers do."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return call(*arguments)
        except Exception as error:
            if time.monotonic() > deadline or not _away(error):
                raise
            logger.warning("a server does not answer, trying again: %s", redact(str(error)))
            time.sleep(_POLL_SECONDS)


def _away(error: BaseException) -> bool:
    """Whether an error says no more than that Prefect's or MLflow's server is not there just now."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError) or is_away(error)
