"""What changed between a git revision and the working tree: concepts through DVC, and the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components import revisions
from components.concepts import versions
from components.settings import Profile, load_profile
from components.tracking import registry
from components.tracking.store import is_empty, open_store

_RUN_ONLY = {"name", "continual"}  # sections that decide how a run goes, not what it makes


@dataclass(frozen=True)
class Changes:
    """What differs from a revision.

    Attributes:
        since: the commit.
        concepts: concept -> added, modified or removed.
        settings: the sections of the profile, or `prompts`, that changed: they concern every concept.
    """

    since: str
    concepts: Mapping[str, str]
    settings: tuple[str, ...]

    def names(self, all_concepts: Sequence[str]) -> list[str]:
        """The concepts that a run has to look at."""
        return sorted({*self.concepts, *(all_concepts if self.settings else ())})

    def __str__(self) -> str:
        data = ", ".join(f"{name} {change}" for name, change in self.concepts.items()) or "no concept"
        return f"since {self.since[:12]}: {data}" + (f"; profile: {', '.join(self.settings)}" if self.settings else "")


def changes_since(root: Path, since: str, profile: str, overrides: Sequence[str] = ()) -> Changes:
    """Compare with a revision, which a shallow clone fetches first; of its data only the listing is read.

    Raises:
        InvalidInput: no such revision, or its data's listing is neither in the cache nor in the remote.
    """
    commit = revisions.resolve(root, since)
    settings = load_profile(profile, overrides)
    return Changes(commit, dict(versions.changes(root, commit)), _settings(root, commit, profile, settings))


def _settings(root: Path, commit: str, profile: str, now: Profile) -> tuple[str, ...]:
    file = f"profiles/{profile}.yaml" if not profile.endswith((".yaml", ".yml")) else profile
    then = _mapping(revisions.text_at(root, commit, file))
    here = _mapping((root / file).read_text(encoding="utf-8"))
    keys = sorted((then.keys() | here.keys()) - _RUN_ONLY)
    changed = [key for key in keys if then.get(key) != here.get(key)]
    prompts = now.evaluation.prompts
    if revisions.text_at(root, commit, prompts) != (root / prompts).read_text(encoding="utf-8"):
        changed.append("prompts")
    return tuple(changed)


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def names_since(root: Path, since: str, profile: str, overrides: Sequence[str] = ()) -> tuple[Changes, list[str]]:
    """What changed, and the concepts that a run has to look at for it; a removed one if it was ever registered."""
    found = changes_since(root, since, profile, overrides)
    here = sorted(versions.per_concept_digests(root))
    known = {*here, *({} if is_empty(root) else registry.list_models(open_store(root)))}
    return found, [name for name in found.names(here) if name in known]
