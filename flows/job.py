"""What one run of customize is about: concept, profile, and the digests that its stages depend on."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.backbones import base_folder
from components.concepts.concept import Concept, fingerprint, load_concept
from components.errors import InvalidInput
from components.files import digest_of, sha256_file, write_json
from components.planning import Inputs
from components.provenance import CodeVersion, code_version
from components.settings import BaseSettings, Gate, Profile, load_profile, project_root
from components.tracking import bundles
from components.tracking.registry import content_digest
from flows.stages import Stage

# Raise the number of a stage when a change of code changes what it makes from the same inputs.
VERSIONS = {"validation": 1, "extractor": 1, "pure-learning": 1, "evaluation": 2, "measurement": 1}

_OPEN = "of the stage before"


@dataclass(frozen=True)
class Learned:
    """A concept that the model has already: its adapter folder, and the digest of its content."""

    name: str
    digest: str
    folder: Path


@dataclass(frozen=True)
class Job:
    """One concept and one profile, with the fingerprints of what they name.

    Attributes:
        data: SHA-256 over the concept's files.
        data_version: DVC's digest of the concept's data, and the pointer file.
        base: digest of the base model.
        earlier: the adapters that the base has when this concept is learned, in order; none: the pristine base.
    """

    root: Path
    concept: Concept
    profile: Profile
    data: str
    data_version: str
    data_pointer: str
    base: str
    earlier: tuple[Learned, ...] = ()

    @property
    def name(self) -> str:
        return self.concept.name

    @functools.cached_property
    def code(self) -> CodeVersion:
        return code_version(self.root)

    @property
    def trains_extractor(self) -> bool:
        return self.profile.learning.has_extractor

    @property
    def gates(self) -> dict[str, Gate]:
        """Metric -> the gate that judges a concept of this kind."""
        return self.profile.gates_for(self.concept.kind)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """What the outcome depends on, known before anything runs: the key by which unchanged work is recognised."""
        extractor = [self.extractor()] if self.trains_extractor else []
        stages = [self.validation(), *extractor, self.pure(_OPEN if extractor else None), self.evaluation(_OPEN)]
        gates = {metric: gate.model_dump(mode="json") for metric, gate in self.gates.items()}
        return Inputs.of_stages(self.name, {stage.name: stage.inputs for stage in stages}, gates)

    def validation(self) -> Stage:
        return self._stage("validation", {"data": self.data, "concepts": _dump(self.profile.concepts)})

    def extractor(self) -> Stage:
        """Stage 1: it does not depend on how stage 2 uses it."""
        return self._stage("extractor", self._training("extractor"))

    def pure(self, extractor: str | None) -> Stage:
        """Stage 2.

        Args:
            extractor: content digest of stage 1's adapter; None where the method has none.
        """
        return self._stage("pure-learning", {**self._training("pure-learning"), "extractor": extractor})

    def evaluation(self, adapter: str) -> Stage:
        """The evaluation of the adapter with this content digest."""
        settings = self.profile.evaluation
        evaluators = {
            name: _model_digest(self.root, path)
            for name, path in _dump(settings.evaluators).items()
            if path is not None
        }
        return self._stage(
            "evaluation",
            {
                "adapter": adapter,
                "data": self.data,
                "base": self._base(),
                "seed": self.profile.seed,
                "settings": {
                    key: value for key, value in _dump(settings).items() if key not in ("prompts", "evaluators")
                },
                "prompts": sha256_file(self.root / settings.prompts),
                "evaluators": evaluators,
            },
        )

    def measurement(self, scales: Sequence[float]) -> Stage:
        """A benchmark's cell: the whole training, with the steps and scales at which its adapter is evaluated."""
        learning = self.profile.learning
        return self._stage(
            "measurement",
            {
                "training": self.pure(self.extractor().key if self.trains_extractor else None).key,
                "steps": [*learning.snapshot_steps, learning.pure.steps],
                "scales": list(scales),
                "evaluation": self.evaluation("each of these").key,
            },
        )

    def _training(self, stage: Literal["extractor", "pure-learning"]) -> dict[str, Any]:
        learning = self.profile.learning.of_stage(stage)
        if learning.get("earlier"):  # adapter folders count by their content
            learning["earlier"] = [content_digest(self.root / folder) for folder in learning["earlier"]]
        found = {"data": self.data, "base": self._base(), "seed": self.profile.seed, "learning": learning}
        if self.earlier:
            digests = [learned.digest for learned in self.earlier]
            found["on_top_of"] = {"how": self.profile.continual.earlier, "adapters": digests}
        return found

    def _base(self) -> dict[str, Any]:
        settings = {key: value for key, value in _dump(self.profile.base).items() if key not in BaseSettings.WHERE}
        return {"fingerprint": self.base, **settings}

    def _stage(self, name: str, inputs: dict[str, Any]) -> Stage:
        return Stage(self.root, name, {"version": VERSIONS[name], "concept": self.name, **inputs})


def load_job(name: str, profile: str, overrides: Sequence[str] = ()) -> Job:
    """Resolve a concept and a profile by name.

    Raises:
        InvalidInput: no such concept or profile, a wrong setting, data that does not match data.dvc, no such base, a
            prompt set or an evaluator that is not there.
    """
    from components.concepts.versions import verify_matches_pointer

    root = project_root()
    settings = load_profile(profile, overrides)
    if name == bundles.NAME:
        raise InvalidInput(f"{name!r} is the name of the bundle of all champions", field="name", mend="rename it")
    folder = root / "data" / "concepts" / name
    data = fingerprint(folder)
    concept = load_concept(folder)
    version = verify_matches_pointer(root, name)
    base = base_folder.fingerprint(base_folder.resolve(settings.base))
    return Job(root, concept, settings, data, version.md5, version.pointer, base)


def _dump(settings: Any) -> dict[str, Any]:
    return dict(settings.model_dump(mode="json"))


def _model_digest(root: Path, path: str) -> str:
    """Digest of an evaluator's folder or file, kept by size and time of change; a hub id stands for itself."""
    folder = root / path
    if folder.is_file():
        files, folder = [folder], folder.parent
    elif folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    else:
        return path
    facts = [[file.relative_to(folder).as_posix(), *_change(file)] for file in files]
    cache = root / ".purecc" / "fingerprints" / f"{digest_of([str(folder), facts])}.json"
    if cache.is_file():
        try:
            return str(json.loads(cache.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError):
            cache.unlink(missing_ok=True)
    value = digest_of({file.relative_to(folder).as_posix(): sha256_file(file) for file in files})
    write_json(cache, {"fingerprint": value, "folder": str(folder)})
    return value


def _change(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
