"""One concept, from its folder to a champion adapter.

    purecc customize striped_star
    prefect deployment run customize/customize --param name=striped_star

The concept's folder is validated; stage 1 learns what the concept is (the representation extractor); stage 2 teaches
the model that and nothing else (pure learning); the result is compared with the original model, picture by picture;
and if every gate is passed, a fresh process can serve it and, where the profile asks for it, a person agrees, it
becomes the champion that consumers load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from components.settings import project_root
from flows import approval, recovery, tasks
from flows.job import load_job
from flows.outcome import GatesRefused
from flows.session import open_session
from flows.start import fetch_data


@flow(name="customize", flow_run_name="{name}")
def customize(name: str, profile: str = "tiny", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Customize the base model with one concept.

    Args:
        name: a folder under `data/concepts`.
        profile: a file under `profiles`.
        overrides: `KEY=VALUE` settings over the profile's.

    Returns:
        the `Outcome`, as JSON.

    Raises:
        GatesRefused: the adapter was made, registered and refused.
    """
    recovery.announce()
    fetch_data(project_root(), name)  # a worker that was never here has none
    job = load_job(name, profile, overrides)
    if job.profile.promotion.approval:
        approval.require_server()
    with open_session(job) as session:
        tasks.validate(session)
        extractor = tasks.train_extractor(session) if job.trains_extractor else None
        adapter = tasks.train_pure(session, extractor)
        evaluation = tasks.evaluate(session, adapter)
        if job.profile.promotion.approval:
            version, gates = tasks.bless(session, extractor, adapter, evaluation)
            if gates.passed:
                approval.ask(session, version, gates)
        outcome = tasks.promote(session, extractor, adapter, evaluation)
    if outcome.refused:
        raise GatesRefused(outcome)
    return outcome.to_json()
