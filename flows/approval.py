"""A person's consent before an adapter becomes the champion: the flow pauses and asks on Prefect's page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from components.errors import InvalidInput
from components.tracking import blessings, registry
from components.tracking.gates import GateReport
from components.tracking.registry import Version, model_name

if TYPE_CHECKING:
    from flows.session import Session

_WAIT = 7 * 24 * 3600  # seconds


class Approval(RunInput):
    """The answer that a person gives on the page of the paused run."""

    approve: bool
    name: str = ""
    note: str = ""


def reachable() -> bool:
    """Whether there is a server besides the embedded one, which has no page and ends with the run."""
    return bool(os.environ.get("PREFECT_API_URL"))


def require_server() -> None:
    """Refuse early where nobody could answer.

    Raises:
        InvalidInput: no Prefect server is configured.
    """
    if not reachable():
        raise InvalidInput(
            "an approval is asked for on Prefect's page, and no Prefect server is configured",
            field="promotion.approval",
            mend="set PREFECT_API_URL, or promotion.approval=false",
        )


def ask(session: Session, version: Version, gates: GateReport) -> None:
    """Pause the flow run until a person has answered, and keep the answer with the version.

    An answer that is there already is not asked for again.
    """
    known = registry.version(session.store, version.concept, version.number)
    if known.tags.get("approval/status") == "passed" and not blessings.binding_problem(known, blessings.APPROVAL):
        return
    rows = "\n".join(
        f"| {result.metric} | {result.value} | {result.bound} | {'passed' if result.passed else 'refused'} |"
        for result in gates.results
    )
    served = known.tags.get("servability/facts", "not looked at")
    text = (
        f"## {model_name(version.concept)} version {version.number}\n\n"
        f"| metric | value | bound | |\n|---|---|---|---|\n{rows}\n\n"
        f"Servability: `{served}`. The report is an artifact of this run, and of the MLflow run `{session.run_id}` "
        "(report/), where every machine can read it. Resume to let it become the champion, or not."
    )
    answer = pause_flow_run(
        wait_for_input=Approval.with_initial_data(description=text, approve=False), timeout=_WAIT, poll_interval=5
    )
    tags = blessings.approval_tags(known, approved=answer.approve, by=answer.name, note=answer.note)
    if answer.approve:
        registry.remove_tag(session.store, version.concept, version.number, "approval/refused")
    registry.set_tags(session.store, version.concept, version.number, tags)
