"""The champions of a run together: the check of all of them in one model, and the bundle that pins what was checked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.backbones import base_folder
from components.concepts.concept import load_concept
from components.errors import InvalidInput, PureCCError
from components.files import digest_of
from components.settings import Profile, load_profile, project_root
from components.tracking import bundles, registry
from components.tracking.registry import Version
from components.tracking.store import Store, open_store
from flows.console import finite, stderr
from flows.run_record import RunRecord
from flows.run_summary import ConceptResult, RunSummary

logger = logging.getLogger(__name__)

_VERSION = 1  # raised when the check itself changes


@dataclass(frozen=True)
class Pins:
    """The champions that stand together, by concept, and the key of a check of them."""

    versions: Mapping[str, Version]
    key: str

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "version": version.number, "adapter": version.tags.get("adapter/digest", "")}
            for name, version in self.versions.items()
        ]


def pins_of(profile: str, overrides: Sequence[str]) -> Pins | None:
    """The champions on this base of all concepts whose data is here; None where there is none."""
    root, settings = project_root(), load_profile(profile, overrides)
    store, base = open_store(root), base_folder.fingerprint(base_folder.resolve(settings.base))
    found: dict[str, Version] = {}
    for name, aliases in registry.list_models(store).items():
        if registry.CHAMPION in aliases and name != bundles.NAME and _is_here(root, name):
            champion = registry.version(store, name, aliases[registry.CHAMPION])
            if champion.tags.get("base/fingerprint") == base:
                found[name] = champion
    if not found:
        return None
    facts = {
        "version": _VERSION,
        "pins": {name: version.tags.get("adapter/digest") for name, version in found.items()},
        "base": base,
        "evaluators": settings.evaluation.evaluators.model_dump(mode="json"),
        "sampling": settings.evaluation.sampling.model_dump(mode="json"),
        "seed": settings.seed,
        "check": _check_settings(settings),
    }
    return Pins(found, digest_of(facts)[:40])


def _is_here(root: Path, name: str) -> bool:
    try:
        load_concept(root / "data" / "concepts" / name)
    except InvalidInput:
        return False
    return True


def _check_settings(settings: Profile) -> dict[str, Any]:
    names = ("compose", "images", "maximum_pairs", "maximum_loss", "maximum_bleed")
    return {name: value for name, value in settings.continual.model_dump(mode="json").items() if name in names}


def conclude(results: Sequence[ConceptResult], profile: str, overrides: Sequence[str], record: RunRecord) -> RunSummary:
    """Check all champions of the project together, unless these were checked before, and register their bundle.

    A check that fails is a line of the summary: the champions stay what they are.
    """
    settings = load_profile(profile, overrides)
    checks: dict[str, Any] = {}
    bundle: dict[str, Any] | None = None
    try:
        pins = pins_of(profile, overrides)
        if pins is not None:
            checks, bundle = _checked(pins, settings, record)
    except (PureCCError, OSError, RuntimeError) as error:
        logger.warning("the champions could not be checked together: %s", error)
        checks = {"refused": f"the check of all champions together failed: {error}"}
    return RunSummary("independent", results, settings.continual.minimum_success, checks, bundle)


def _checked(pins: Pins, settings: Profile, record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    if (before := _known(pins, record.store)) is not None:
        return before
    stderr.print(f"checking {len(pins.versions)} champions together ...", style="dim")
    with contextlib.ExitStack() as stack:
        folders = {
            name: stack.enter_context(registry.adapter_folder(record.store, name, version.number))
            for name, version in pins.versions.items()
        }
        result = _check(folders, settings, record.root)
        bounds = settings.continual
        refused = result.refusal(maximum_loss=bounds.maximum_loss, maximum_bleed=bounds.maximum_bleed)
        record.artifact("together.json", result.to_json())
        record.metrics(result.metrics)
        content = {
            "mode": "independent",
            "compose": settings.continual.compose,
            "base": {"path": settings.base.path},
            "concepts": pins.to_json(),
            "checks": finite(result.metrics),
        }
        version = bundles.register(
            record.store, record.run_id, key=pins.key, content=content, adapters=folders, refused=refused
        )
    return {"refused": refused, **result.to_json()}, _bundle_facts(version, pins)


def _check(folders: Mapping[str, Path], settings: Profile, root: Path) -> Any:
    from components.backbones.sd3 import SD3Backbone
    from components.evaluation.evaluators import load_evaluators
    from components.evaluation.together import TogetherCheck

    backbone = SD3Backbone.load(settings.base)
    concepts = {}
    for name, folder in folders.items():
        backbone.load_adapter(folder, name)
        concepts[name] = load_concept(root / "data" / "concepts" / name)
    check = TogetherCheck(
        backbone=backbone,
        concepts=concepts,
        judges=load_evaluators(settings.evaluation.evaluators, root, backbone.device),
        sampling=settings.evaluation.sampling,
        how=settings.continual.compose,
        images=settings.continual.images,
        seed=settings.seed,
        resolution=settings.base.resolution,
    )
    return check.run(settings.continual.maximum_pairs)


def _bundle_facts(version: Version, pins: Pins) -> dict[str, Any]:
    return {"version": version.number, "status": version.status, "concepts": pins.to_json()}


def known(profile: str, overrides: Sequence[str], store: Store) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """Checks and bundle of the champions if they were checked before, or have nothing to check; None: to be done."""
    pins = pins_of(profile, overrides)
    if pins is None:
        return {}, None
    return _known(pins, store)


def _known(pins: Pins, store: Store) -> tuple[dict[str, Any], dict[str, Any]] | None:
    version = bundles.find(store, pins.key)
    if version is None or version.status == "not judged":
        return None
    return {"refused": version.tags.get("gate/refused", ""), "reused": True}, _bundle_facts(version, pins)
