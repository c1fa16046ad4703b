"""Stage artifacts: what a stage made, kept by the digest of everything it was made from, trusted only when whole.

`artifacts/<stage>/<key>/` in the project's `.purecc` is a folder with SHA256SUMS; the same in `work` beside it is where
the stage works, under the same name in every attempt, so that an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from components.errors import IntegrityError
from components.files import atomic_folder, digest_of, verify_manifest, write_json

logger = logging.getLogger(__name__)

FACTS = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One stage with its inputs.

    Attributes:
        root: the project's folder.
        name: e.g. `extractor`.
        inputs: JSON-able facts that the result depends on, and nothing else.
    """

    root: Path
    name: str
    inputs: Mapping[str, Any]

    @property
    def key(self) -> str:
        return digest_of({"stage": self.name, "inputs": dict(self.inputs)})[:40]

    @property
    def folder(self) -> Path:
        return self.root / ".purecc" / "artifacts" / self.name / self.key

    @property
    def work(self) -> Path:
        return self.root / ".purecc" / "work" / self.name / self.key

    def lock(self) -> FileLock:
        """Held while the stage runs: a second run of the same inputs waits and then finds the result."""
        path = self.root / ".purecc" / "locks" / f"{self.name}-{self.key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


@dataclass(frozen=True)
class Artifact:
    """A stage's result: verified, or made just now.

    Attributes:
        folder: its files.
        reused: nothing had to be done.
        facts: what the stage recorded about itself (its run, ...).
    """

    stage: Stage
    folder: Path
    reused: bool
    facts: Mapping[str, Any]


def find(stage: Stage) -> Artifact | None:
    """The artifact of these inputs if it is there and whole; one that was altered is reported and not used."""
    if not stage.folder.is_dir():
        return None
    try:
        verify_manifest(stage.folder)
        facts = json.loads((stage.folder / FACTS).read_text(encoding="utf-8"))
        if facts.get("key") != stage.key:
            raise IntegrityError(f"{stage.folder}: made as {facts.get('key')}")
    except (IntegrityError, OSError, ValueError) as error:
        logger.warning("the kept result of %s is not used, it was altered: %s", stage.name, error)
        return None
    return Artifact(stage, stage.folder, reused=True, facts=facts)


def run(stage: Stage, make: Callable[[Path], tuple[Mapping[str, Path], Mapping[str, Any]]]) -> Artifact:
    """The stage's artifact: the kept one, or made by `make` in the work folder.

    Args:
        make: called with the work folder; returns what becomes the artifact (name -> file or folder) and facts to
            record. On an error the work folder stays for the next attempt.
    """
    with stage.lock():
        found = find(stage)
        if found is not None:
            shutil.rmtree(stage.work, ignore_errors=True)  # there where the last run died between the two
            return found
        _sweep(stage)
        stage.work.mkdir(parents=True, exist_ok=True)
        parts, facts = make(stage.work)
        with atomic_folder(stage.folder) as folder:
            for name, source in parts.items():
                if source.is_dir():
                    shutil.copytree(source, folder / name)
                else:
                    shutil.copy2(source, folder / name)
            recorded = {"stage": stage.name, "key": stage.key, "inputs": dict(stage.inputs), **facts}
            write_json(folder / FACTS, recorded)
        shutil.rmtree(stage.work, ignore_errors=True)
        return Artifact(stage, stage.folder, reused=False, facts=recorded)


def _sweep(stage: Stage) -> None:
    """Remove what a killed publication of this key left behind."""
    for pattern in (f".{stage.key}.*.partial", f".{stage.key}.*.retired"):
        for remains in stage.folder.parent.glob(pattern):
            shutil.rmtree(remains, ignore_errors=True)
