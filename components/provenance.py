"""Where an adapter comes from: data, base, profile, code, libraries, seed, run, parents."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from components.secrets import redact_values

PROVENANCE = "provenance.json"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class CodeVersion:
    """The git commit the code stands at; `commit` is None outside a git checkout."""

    commit: str | None
    dirty: bool


@dataclass(frozen=True)
class Provenance:
    """The content of provenance.json; every digest names its algorithm in its key or is SHA-256."""

    concept: str
    stage: str
    key: str
    seed: int
    data: Mapping[str, str]
    base: Mapping[str, str]
    profile: Mapping[str, str]
    code: CodeVersion
    run: str | None
    parents: Sequence[str] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    python: str = field(default_factory=platform.python_version)

    def to_json(self) -> dict[str, Any]:
        """The facts as they are written: without secrets."""
        return dict(redact_values(asdict(self)))


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions; a library that is not installed is left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(root: Path) -> CodeVersion:
    """Commit of the checkout at `root`, and whether tracked code differs from it."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return CodeVersion(None, False)
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "components", "flows", "profiles")
    return CodeVersion(commit, bool(changed))
