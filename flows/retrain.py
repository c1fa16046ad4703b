"""What a commit changed, brought to where it should be.

    purecc retrain --since origin/main~1
    prefect deployment run retrain/retrain --param since=HEAD~1

Concepts are compared through DVC, file by file, and the profile section by section; the plan of those concepts is then
a run of `continual`: what the registry holds already is not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from components.settings import project_root
from flows.changes import names_since
from flows.concept_runs import Dispatch
from flows.console import stderr
from flows.continual import Mode, continual


@flow(name="retrain", flow_run_name="since {since}")
def retrain(
    since: str,
    profile: str = "tiny",
    overrides: Sequence[str] = (),
    mode: Mode = "independent",
    dispatch: Dispatch = "process",
) -> dict[str, Any]:
    """Run `continual` for what changed since a revision.

    Args:
        since: a commit, branch or tag.
        profile, overrides, mode, dispatch: as for `continual`.

    Raises:
        InvalidInput: no such revision.
        RunFailed: see `continual`.
    """
    changes, names = names_since(project_root(), since, profile, overrides)
    stderr.print(str(changes), style="dim", highlight=False)
    result: dict[str, Any] = continual(names, profile, list(overrides), mode, dispatch)
    return result
