"""Many concepts: each on its own account, what they do together checked, one summary that names them all.

    purecc continual
    purecc continual --mode sequential striped_star blueprint
    prefect deployment run continual/continual

What dead processes left is closed; the plan says what is to be done; each concept is customized for itself, so that the
failure of one is a line of the summary and nothing to the others; then the champions are checked together and pinned as
a bundle. In sequential mode each concept is learned on the model that has the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from prefect import flow
from prefect.states import Completed, State

from components.settings import load_profile, project_root
from flows import concept_runs, recovery, sequence, together
from flows.plan import make_plan
from flows.run_record import record_run
from flows.run_summary import RunFailed

Mode = Literal["independent", "sequential"]


@flow(name="continual", flow_run_name="{mode}")
def continual(
    names: Sequence[str] | None = None,
    profile: str = "tiny",
    overrides: Sequence[str] = (),
    mode: Mode = "independent",
    dispatch: concept_runs.Dispatch = "process",
) -> State[dict[str, Any]]:
    """Bring every concept, or the named ones, to the state that data and profile ask for.

    Args:
        names: folders under `data/concepts`; None: all, and champions without data are retired.
        profile: a file under `profiles`.
        overrides: `KEY=VALUE` settings over the profile's.
        mode: `independent`: each concept on the pristine base; `sequential`: each on the model that has those before.
        dispatch: `process`: one after the other in this process; `workers`: one flow run per concept, by the
            deployment `customize`.

    Returns:
        the `RunSummary`, as JSON.

    Raises:
        RunFailed: fewer concepts came through than `continual.minimum_success`.
        AlreadyRunning: another continual run is under way here.
    """
    root, settings = project_root(), load_profile(profile, overrides)
    recovery.announce()
    with recovery.only_one(root, "continual"):
        recovery.recover(root)
        recovery.close_dead_flow_runs()
        with record_run(root, settings, mode) as record:
            plan = make_plan(profile, overrides, names)
            record.plan(plan)
            if mode == "sequential":
                summary = sequence.learn(plan, names, profile, overrides, record)
            else:
                results = concept_runs.bring_about(plan, profile, overrides, dispatch, record.note)
                summary = together.conclude(results, profile, overrides, record)
            facts = record.finish(summary)
    if summary.state == "failed":
        raise RunFailed(facts)
    name = "Completed" if summary.state == "completed" else "CompletedWithFailures"
    return Completed(name=name, message=summary.message, data=facts)
