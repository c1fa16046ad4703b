"""The plan of a project: the state its data and profile ask for against what its registry holds.

Seconds, where nothing changed: neither torch nor Prefect is imported, and files are hashed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components import planning
from components.concepts import versions as data_versions
from components.concepts.concept import list_concepts
from components.concepts.pointer import DATA, POINTER
from components.errors import InvalidInput
from components.planning import Decision, Failures
from components.settings import Profile, load_profile, project_root
from components.tracking import bundles, registry
from components.tracking.failures import failures
from components.tracking.store import Store, is_empty, open_store
from flows.console import WrongUse
from flows.job import Job, load_job
from flows.start import fetch_data


def make_plan(profile: str, overrides: Sequence[str] = (), names: Sequence[str] | None = None) -> list[Decision]:
    """Decide for every concept of the project, or for the named ones, in the order of their names.

    Data that `data.dvc` names and that is not here yet is fetched.

    Args:
        names: only these; champions without data are then left alone.

    Raises:
        WrongUse: a name that no concept and no champion has.
        InvalidInput: a wrong profile or setting, or no version of the data.
    """
    root = project_root()
    settings = load_profile(profile, overrides)
    store = None if is_empty(root) else open_store(root)
    recorded = set(data_versions.per_concept_digests(root))
    here = {folder.name for folder in list_concepts(root / DATA / data_versions.CONCEPTS)}
    registered = registry.list_models(store) if store is not None else {}
    champions = {
        name: aliases[registry.CHAMPION]
        for name, aliases in registered.items()
        if registry.CHAMPION in aliases and name != bundles.NAME
    }
    retired = planning.retirements(recorded | here, champions)
    if names is None:
        wanted = sorted(recorded | here)
    else:
        wanted = list(dict.fromkeys(names))
        retired = [decision for decision in retired if decision.name in wanted]
        known = recorded | here | set(registered)
        if unknown := [name for name in wanted if name not in known]:
            listed = ", ".join(sorted(recorded | here)) or "none"
            raise WrongUse(f"no concept {unknown[0]!r}: known concepts: {listed}")
        wanted = [name for name in wanted if name in recorded | here]
    decisions = [_decide(root, name, profile, overrides, settings, store, name in registered) for name in wanted]
    return sorted([*decisions, *retired], key=lambda decision: decision.name)


def _decide(
    root: Path,
    name: str,
    profile: str,
    overrides: Sequence[str],
    settings: Profile,
    store: Store | None,
    registered: bool,
) -> Decision:
    try:
        fetch_data(root, name)
        job = load_job(name, profile, overrides)
    except InvalidInput as error:
        if not _of_the_data(error, root):
            raise  # the profile, the base, an evaluator: nothing of this concept's
        return planning.unreadable(name, str(error))
    return decide(job, store, registered=registered)


def _of_the_data(error: InvalidInput, root: Path) -> bool:
    file = None if error.file is None else Path(error.file)
    return file is not None and (file == root / POINTER or file.is_relative_to(root / DATA))


def decide(job: Job, store: Store | None, *, registered: bool = True) -> Decision:
    """The decision for one concept."""
    versions = registry.versions(store, job.name) if store is not None and registered else []
    failed = failures(store, job.name, job.inputs.key) if store is not None else Failures()
    return planning.decide(job.inputs, versions, failed, quarantine_after=job.profile.continual.quarantine_after)
