"""Failed runs, by the key of their inputs: what puts a concept into quarantine."""

from __future__ import annotations

from collections.abc import Mapping

from components.planning import KEY, Failures
from components.tracking.runs import TRANSIENT
from components.tracking.store import Store


def failures(store: Store, concept: str, key: str) -> Failures:
    """The runs of a concept that failed with these inputs, and why the last one did.

    Runs that were interrupted, whose process died, or that failed for want of a disk or a server do not count: they say
    nothing about the concept.
    """
    experiment = store.client.get_experiment_by_name(f"purecc/{concept}")
    if experiment is None:
        return Failures()
    wanted = f"attributes.status = 'FAILED' and tags.`{KEY}` = '{key}'"
    runs = store.client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.start_time DESC"])
    found = [run for run in runs if run.data.tags.get(TRANSIENT) != "true"]
    return Failures(len(found), _reason(found[0].data.tags)) if found else Failures()


def _reason(tags: Mapping[str, str]) -> str:
    lines = tags.get("error", "").strip().splitlines()
    return lines[0] if lines else "no reason recorded"
