"""What may go: versions that no alias and no bundle refers to, and logged models that no version refers to.

A bundle is a registered model that pins versions of others: any tag of any registered model or version, outside of the
version's own model, that names `purecc-<concept>` with a version keeps it (see `referred`).
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from components.errors import InvalidInput, PureCCError
from components.tracking import bundles, registry, succession
from components.tracking.registry import PREFIX, Version, model_name
from components.tracking.store import ABSENT, PassingOver, Store

logger = logging.getLogger(__name__)

_REFERENCE = re.compile(rf"{PREFIX}([a-z][a-z0-9_-]*)(?:/|:|@|\s+version\s+|\"\s*:\s*\"?)(\d+)")


_SOURCE = re.compile(r"models:/(m-[0-9a-f]+)")


class StillReferred(PureCCError):
    """Something refers to what was to be removed."""


@dataclass(frozen=True)
class Waste:
    """One thing that may go.

    Attributes:
        version: None for a logged model that no version refers to.
        model: id of the logged model that holds the bytes.
        size: bytes, where they lie on this machine; else None.
        reason: why nothing needs it.
    """

    name: str
    version: int | None
    model: str | None
    size: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find(store: Store, concepts: Sequence[str] | None = None) -> list[Waste]:
    """Everything that may go; nothing is touched.

    Args:
        concepts: only these; default: all.
    """
    bundles = referred(store)
    found: list[Waste] = []
    for concept in concepts or registry.list_models(store):
        versions = registry.versions(store, concept)
        for version in versions:
            if _keeper(store, version, bundles) is None:
                model = _model_of(store, version)
                reason = version.tags.get("gate/refused") or "no alias or bundle refers to it"
                found.append(Waste(concept, version.number, model, _size(store, model), reason))
        held = _held(store, versions)
        for model in [] if held is None else [each for each in _logged_models(store, concept) if each not in held]:
            reason = "logged by a run that was cut off: no version refers to it"
            found.append(Waste(concept, None, model, _size(store, model), reason))
    return found


def remove(store: Store, waste: Iterable[Waste]) -> list[Waste]:
    """Remove what `find` found; what is referred to by now is left out.

    `find` looks without a lock, so that a model may be there whose registration is under way: whatever is removed is
    looked at again under the lock, which a registration holds from before its model is logged to after its version is
    made.

    Versions and logged models are deleted in the registry; bytes of the embedded store at once, those of a server by
    its own `mlflow gc`.
    """
    gone = []
    for each in waste:
        with store.lock(f"registry-{each.name}"):
            if each.version is not None:
                try:
                    require_unreferred(store, each.name, each.version)
                except (StillReferred, InvalidInput) as error:
                    logger.warning("left alone: %s", error)
                    continue
                store.client.delete_model_version(model_name(each.name), str(each.version))
            elif not _is_free(store, each):
                logger.warning("left alone: model %s, which a version of %s holds by now", each.model, each.name)
                continue
            if each.model is not None:
                _delete_model(store, each.model)
        gone.append(each)
    return gone


def require_unreferred(store: Store, concept: str, number: int) -> None:
    """Raises StillReferred where an alias, a bundle or a move that is under way refers to a version."""
    keeper = _keeper(store, registry.version(store, concept, number), referred(store))
    if keeper is not None:
        raise StillReferred(f"{model_name(concept)} version {number} is not removed: {keeper} refers to it")


def referred(store: Store) -> dict[tuple[str, int], str]:
    """(concept, version) -> the registered model whose tags or versions' tags pin it."""
    found: dict[tuple[str, int], str] = {}
    token: str | None = None
    while True:
        page = store.client.search_registered_models(max_results=500, page_token=token)
        for model in page:
            if model.name == model_name(bundles.NAME):
                pins = [pin for bundle in registry.versions(store, bundles.NAME) for pin in bundles.pins(bundle)]
                found |= {(pin.name, pin.version): model.name for pin in pins if pin.version is not None}
            texts = [*model.tags.values(), model.description or ""]
            for version in store.client.search_model_versions(f"name = '{model.name}'"):
                texts += [*version.tags.values(), version.description or ""]
            for text in texts:
                for concept, number in _REFERENCE.findall(text):
                    if model_name(concept) != model.name:
                        found[concept, int(number)] = model.name
        token = page.token
        if not token:
            return found


def _keeper(store: Store, version: Version, bundles: dict[tuple[str, int], str]) -> str | None:
    if "adapter/digest" not in version.tags:
        return "its model, which holds no adapters,"
    if version.aliases:
        return f"the alias {version.aliases[0]}"
    if (version.concept, version.number) in bundles:
        return bundles[version.concept, version.number]
    known = succession.state(store, version.concept)
    if known is not None and version.number in (known.champion, known.previous):
        return "the record of the last promotion (purecc models repair)"
    intent = succession.pending(store, version.concept)
    if intent is not None and version.number in (intent.source, intent.source_previous, intent.target):
        return "a promotion that is under way"
    return None


def _model_of(store: Store, version: Version) -> str | None:
    """Id of the logged model that holds a version's bytes; None where its source does not say."""
    found = store.client.get_model_version(model_name(version.concept), str(version.number))
    match = _SOURCE.fullmatch(str(found.source))
    return match.group(1) if match else None


def _held(store: Store, versions: Iterable[Version]) -> set[str] | None:
    """The logged models that hold the versions' bytes; None where a version does not say: any model may be its."""
    found: set[str] = set()
    for version in versions:
        model = _model_of(store, version)
        if model is None:
            return None
        found.add(model)
    return found


def _is_free(store: Store, waste: Waste) -> bool:
    """Whether still no version refers to a logged model; the caller holds the concept's lock."""
    held = _held(store, registry.versions(store, waste.name))
    return held is not None and waste.model not in held


def _logged_models(store: Store, concept: str) -> list[str]:
    experiment = store.client.get_experiment_by_name(f"purecc/{concept}")
    if experiment is None:
        return []
    found: list[str] = []
    token: str | None = None
    while True:
        page = store.client.search_logged_models([experiment.experiment_id], page_token=token)
        found += [str(model.model_id) for model in page]
        token = page.token
        if not token:
            return found


def _local(store: Store, model: str | None) -> Path | None:
    """Where a logged model's files lie, if below the embedded store."""
    from mlflow.exceptions import MlflowException

    if store.artifacts is None or model is None:
        return None
    try:
        location = str(store.client.get_logged_model(model).artifact_location)
    except MlflowException:
        return None
    folder = Path(unquote(location.removeprefix("file://")) if location.startswith("file://") else location)
    folder = folder.resolve()
    if not folder.is_relative_to(store.artifacts.resolve()) or folder == store.artifacts.resolve():
        return None
    # .../models/m-<id>/artifacts
    return folder.parent if folder.name == "artifacts" and folder.parent.name == model else folder


def _size(store: Store, model: str | None) -> int | None:
    folder = _local(store, model)
    if folder is None or not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _delete_model(store: Store, model: str) -> None:
    folder = _local(store, model)
    with PassingOver(ABSENT):
        store.client.delete_logged_model(model)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
