"""Which modules a list of requirements brings, by what is installed here. Needs nothing of the project."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def importable(stated: Sequence[str]) -> set[str]:
    """Top-level modules of the stated requirements and of everything that those require, as installed here."""
    modules_of: dict[str, set[str]] = {}
    for module, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            modules_of.setdefault(canonicalize_name(distribution), set()).add(module)
    waiting, seen, found = list(stated), set[str](), set[str]()
    while waiting:
        try:
            requirement = Requirement(waiting.pop())
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        found |= modules_of.get(name, set())
        try:
            further = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [each for each in further if "extra ==" not in each]
    return found
