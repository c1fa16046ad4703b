"""Typed settings. A profile is one YAML file under `profiles/`; it alone tells the two scales apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError

from components.errors import InvalidInput
from components.files import digest_of
from components.learning_settings import LearningSettings, LoraSettings, SamplingSettings, Settings
from components.secrets import contains_secret

__all__ = [
    "BaseSettings",
    "ConceptSettings",
    "EvaluationSettings",
    "EvaluatorSettings",
    "Gate",
    "LearningSettings",
    "LoraSettings",
    "Profile",
    "SamplingSettings",
    "load_profile",
    "project_root",
]


class BaseSettings(Settings):
    """The pre-trained flow model: a Hugging Face / diffusers folder or hub id."""

    WHERE: ClassVar[frozenset[str]] = frozenset({"path", "revision", "device", "threads"})
    """Fields that say where the base lies and runs, not which it is: its fingerprint says that."""

    path: str
    revision: str | None = None
    resolution: int = Field(gt=0, description="side of the square training and evaluation images, pixels")
    max_sequence_length: int = Field(gt=0, description="rows of T5 context")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, description="of a process on a CPU; None: as many as torch takes")
    placeholder: str = Field(description="a word of the base's own vocabulary that stands where a concept is meant")


class EvaluatorSettings(Settings):
    """Evaluators by folder or hub id; one that is not set gives no metric."""

    clip: str
    dino: str
    segmenter: str
    oracle: str | None = None
    csd: str | None = Field(None, description="style encoder: CSD's state dict, or a CLIP vision model with projection")
    hps: str | None = Field(None, description="HPSv2.1's state dict, or a preference model in CLIP layout")
    pickscore: str | None = Field(None, description="a preference model in CLIP layout")


class EvaluationSettings(Settings):
    prompts: str = Field(description="the prompt set, a YAML file")
    prompts_per_category: int | None = Field(
        None, ge=1, description="of prompts with the concept, the first ones; None: all"
    )
    prompts_without_concept: int | None = Field(None, ge=1, description="the first ones; None: all")
    seeds: int = Field(1, ge=1, description="images per prompt")
    sampling: SamplingSettings = SamplingSettings()
    evaluators: EvaluatorSettings


class Gate(Settings):
    """Bounds of one metric: absolute, and against the current champion."""

    minimum: float | None = None
    maximum: float | None = None
    not_worse_by: float | None = Field(None, ge=0, description="tolerated loss against the champion")
    better: Literal["higher", "lower"] = "higher"


class PromotionSettings(Settings):
    """What a version needs, besides its gates, to become the champion."""

    servability: bool = Field(True, description="a fresh process loads it as consumers do and draws the recorded image")
    tolerance: float = Field(2.0, ge=0, description="mean difference to the recorded image, of 255")
    minimum_effect: float = Field(0.01, ge=0, description="mean difference to the base's image of the prompt, of 255")
    approval: bool = Field(False, description="a person has to agree, on Prefect's page")
    public_key: str | None = Field(None, description="only adapters signed with its private key; a PEM file")


class ContinualSettings(Settings):
    """A run over many concepts."""

    quarantine_after: int = Field(3, ge=1, description="failed runs with the same data and profile")
    minimum_success: float = Field(0.5, ge=0, le=1, description="share of concepts below which the whole run failed")
    wall_clock_seconds: float | None = Field(None, gt=0, description="after it no new concept is begun")
    gpu_seconds: float | None = Field(None, gt=0, description="seconds x GPUs; after it no new concept is begun")
    compose: Literal["merge", "fusion", "switch", "composite"] = Field(
        "merge", description="how champions act together"
    )
    images: int = Field(4, ge=1, description="pictures per prompt of the check of all champions together")
    maximum_pairs: int = Field(24, ge=0, description="pairs that are checked, besides all together")
    maximum_loss: float | None = Field(None, ge=0, description="likeness that a concept may lose in company")
    maximum_bleed: float | None = Field(None, ge=0, description="likeness to another concept that one may gain")
    earlier: Literal["fold", "stack"] = Field("fold", description="sequential: how the concepts before are there")
    metric: str = Field("fidelity/dino", description="sequential: R[i, j], the metric of concept j after learning i")
    maximum_forgetting: float | None = Field(None, ge=0, description="sequential: of the worst concept")


class ConceptSettings(Settings):
    """What a concept folder has to satisfy beyond its schema."""

    minimum_references: int = Field(2, ge=1)
    maximum_references: int = Field(50, ge=1)
    minimum_side: int = Field(64, ge=1, description="pixels")
    maximum_aspect: float = Field(2.0, ge=1, description="long side over short side; beyond it, a warning")
    minimum_sharpness: float = Field(30.0, ge=0, description="variance of the Laplacian; below it, a warning")
    near_duplicate_bits: int = Field(6, ge=0, le=64, description="perceptual hashes that near: a warning")
    identical_backgrounds: float = Field(0.7, ge=0, le=1, description="likeness of all borders: from it on, a warning")
    class_words: list[str] | None = Field(None, description="the words the base can draw; None: any word")


class Profile(Settings):
    name: str
    seed: int = Field(0, ge=0)
    base: BaseSettings
    concepts: ConceptSettings = ConceptSettings()
    learning: LearningSettings
    evaluation: EvaluationSettings
    gates: dict[str, Gate]
    gates_by_kind: dict[Literal["instance", "style"], dict[str, Gate | None]] = Field(
        default_factory=dict, description="what differs from `gates` for concepts of a kind; null: no such gate"
    )
    promotion: PromotionSettings = PromotionSettings()
    continual: ContinualSettings = ContinualSettings()

    def gates_for(self, kind: Literal["instance", "style"]) -> dict[str, Gate]:
        """Metric -> the gate that judges a concept of this kind."""
        wanted = {**self.gates, **self.gates_by_kind.get(kind, {})}
        return {metric: gate for metric, gate in wanted.items() if gate is not None}

    def digest(self, *sections: str) -> str:
        """Digest of the named sections (all, if none is named): what a cached stage depends on."""
        content = self.model_dump(mode="json")
        return digest_of({name: content[name] for name in (sections or tuple(content))})


def project_root() -> Path:
    """The project's folder: `PURECC_HOME`, or the nearest folder upwards that holds `profiles/`.

    Raises:
        InvalidInput: there is none.
    """
    home = os.environ.get("PURECC_HOME")
    if home:
        return Path(home).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "profiles").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise InvalidInput(f"no project found from {here} upwards", mend="run inside a clone or set PURECC_HOME")


def _override(content: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise InvalidInput(f"{assignment!r} is not KEY=VALUE", field="--set", mend="write e.g. learning.eta=1.5")
    *parents, last = key.split(".")
    node: Any = content
    for name in parents:
        if not isinstance(node, dict):
            raise InvalidInput(f"{key!r} does not name a setting", field="--set")
        node = node.setdefault(name, {})
    if not isinstance(node, dict):
        raise InvalidInput(f"{key!r} does not name a setting", field="--set")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{text!r} is not a YAML value: {error}", field=f"--set {key}") from error


def _refuse_secrets(name: str, content: Any, field: str = "") -> None:
    """Raise where a secret stands in a profile or its path: both are written into every run."""
    if isinstance(content, dict):
        for key, value in content.items():
            _refuse_secrets(name, value, f"{field}.{key}" if field else str(key))
    texts = [name] if not field else []
    texts += [content] if isinstance(content, str) else []
    if any(contains_secret(text) for text in texts):
        raise InvalidInput(
            "holds a password, a token or a key, and would be written into every run",
            field=field or "the profile's path",
            mend="remove it: models come from a folder or a hub id, and their tokens from `hf auth login`",
        )


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """Read `profiles/<name>.yaml` (or the YAML file at the path `name`), apply `KEY=VALUE` overrides, validate.

    A profile may state what only other methods read, so that its method can be changed; an override may not.

    Raises:
        InvalidInput: no such profile, not YAML, an unknown key or a wrong type, settings that contradict each other, or
            an override that would be ignored; the file and the field are named.
    """
    folder = project_root() / "profiles"
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
        raise InvalidInput(f"no profile {name!r}", file=file, mend=f"known profiles: {known}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not YAML: {error}", file=file) from error
    if not isinstance(content, dict):
        raise InvalidInput("a profile is a mapping of settings", file=file)
    for assignment in overrides:
        _override(content, assignment)
    _refuse_secrets(name, content)
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        mend = "remove the key or correct its name" if first["type"] == "extra_forbidden" else "correct the value"
        value = first.get("input")
        shown = "" if isinstance(value, dict) else f", got {value!r}"
        raise InvalidInput(
            f"{first['msg'].removeprefix('Value error, ')}{shown}", file=file, field=field, mend=mend
        ) from error
    for assignment in overrides:
        _refuse_unread(profile.learning, assignment.partition("=")[0])
    return profile


def _refuse_unread(learning: LearningSettings, key: str) -> None:
    for name, why in learning.unread().items():
        if key == f"learning.{name}" or key.startswith(f"learning.{name}."):
            raise InvalidInput(
                f"it would be ignored: {why}", field=f"--set {key}", mend="leave it out, or choose another method"
            )
