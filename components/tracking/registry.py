"""Registered adapters: `purecc-<concept>`, one version per adapter content, with its evidence as tags.

Tags of a version: `adapter/digest` (content), `base/fingerprint`, `data/fingerprint`, `profile/digest`, `run`,
`evaluation/key`, `evaluation/metrics` (JSON), `gate/status` (passed, refused), `gate/refused` (the reason),
`gate/table` (JSON), `gate/key` (what was judged against what), `inputs/*` (what a judged version was made from: see
`components.planning`), `promotion/replaced` (the champion before it),
`promotion/rolled_back`, `integrity/broken` (what was found when its bytes no longer matched).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import IntegrityError, InvalidInput
from components.files import MANIFEST, digest_of, read_manifest, verify_manifest
from components.provenance import PROVENANCE
from components.secrets import redact, redact_values
from components.tracking.store import Store

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
PREFIX = "purecc-"
ADAPTER = "adapter"
BROKEN = "integrity/broken"
_TAG_LIMIT = 90_000  # characters of a version's tag


def model_name(concept: str) -> str:
    return f"{PREFIX}{concept}"


def content_digest(adapter: Path) -> str:
    """Digest of an adapter folder's content, by its manifest.

    provenance.json is left out: the same weights from a second run of the same inputs are the same adapter.
    """
    stated = {name: digest for name, digest in read_manifest(adapter).items() if name not in (PROVENANCE, MANIFEST)}
    return digest_of(stated)


@dataclass(frozen=True)
class Version:
    """One version of a registered adapter."""

    concept: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    created: int

    @property
    def status(self) -> str:
        return self.tags.get("gate/status", "not judged")

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.number,
            "aliases": list(self.aliases),
            "status": self.status,
            "reason": self.tags.get("gate/refused"),
            "run": self.run_id,
            "created": self.created,
            "tags": dict(self.tags),
        }


def list_models(store: Store) -> dict[str, dict[str, int]]:
    """Concept -> alias -> version, of every registered adapter."""
    found: dict[str, dict[str, int]] = {}
    token: str | None = None
    while True:
        page = store.client.search_registered_models(f"name LIKE '{PREFIX}%'", max_results=500, page_token=token)
        for model in page:
            aliases = {name: int(version) for name, version in sorted(model.aliases.items())}
            found[model.name.removeprefix(PREFIX)] = aliases
        token = page.token
        if not token:
            return dict(sorted(found.items()))


def aliases(store: Store, concept: str) -> dict[str, int]:
    """Alias -> version of a concept's adapters; empty where none is registered."""
    from mlflow.exceptions import MlflowException

    try:
        model = store.client.get_registered_model(model_name(concept))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {name: int(version) for name, version in model.aliases.items()}


def versions(store: Store, concept: str) -> list[Version]:
    """Every version of a concept's adapter, newest first."""
    by_version: dict[int, list[str]] = {}
    for alias, number in aliases(store, concept).items():
        by_version.setdefault(number, []).append(alias)
    found: list[Version] = []
    token: str | None = None
    while True:
        page = store.client.search_model_versions(f"name = '{model_name(concept)}'", page_token=token)
        for item in page:
            number = int(item.version)
            names = tuple(sorted(by_version.get(number, [])))
            found.append(Version(concept, number, dict(item.tags), names, item.run_id, item.creation_timestamp))
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -version.number)


def version(store: Store, concept: str, number: int) -> Version:
    """One version.

    Raises:
        InvalidInput: there is none.
    """
    known = versions(store, concept)
    for candidate in known:
        if candidate.number == number:
            return candidate
    mend = f"known versions: {', '.join(str(each.number) for each in known)}" if known else _mend(store)
    raise InvalidInput(f"no version {number} of {concept!r}", mend=mend)


def by_alias(store: Store, concept: str, alias: str = CHAMPION) -> Version | None:
    """The version that bears an alias, or None."""
    number = aliases(store, concept).get(alias)
    return None if number is None else version(store, concept, number)


def by_digest(store: Store, concept: str, digest: str) -> Version | None:
    """The newest version that holds this adapter content, or None; a version found broken does not hold it."""
    for each in versions(store, concept):
        if each.tags.get("adapter/digest") == digest and BROKEN not in each.tags:
            return each
    return None


def require_registered(store: Store, concept: str) -> None:
    """Raises InvalidInput where no adapter of the concept is registered."""
    if not versions(store, concept):
        raise InvalidInput(f"no adapter of {concept!r} is registered", mend=_mend(store))


def _mend(store: Store) -> str:
    known = ", ".join(list_models(store))
    return f"registered: {known}" if known else "train one first: purecc customize NAME"


def set_tags(store: Store, concept: str, number: int, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        store.client.set_model_version_tag(model_name(concept), str(number), key, redact(value)[:_TAG_LIMIT])


def register(
    store: Store,
    concept: str,
    adapter: Path,
    *,
    run_id: str,
    base: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Version:
    """Register an adapter folder as a version of `purecc-<concept>`, alias `challenger`; the same content only once.

    Args:
        adapter: finished adapter folder (with manifest).
        run_id: the MLflow run that logs the model.
        base: base settings and fingerprint, for consumers that load the adapter.
        tags: evidence, see the module.

    Raises:
        IntegrityError: the folder does not match its manifest.
    """
    verify_manifest(adapter)
    digest = content_digest(adapter)
    with store.lock(f"registry-{concept}"):
        found = _whole(store, by_digest(store, concept, digest))
        if found is None:
            logged = _log_model(store, concept, adapter, run_id=run_id, base=base)
            _make_registered_model(store, concept)
            limited = {key: redact(value)[:_TAG_LIMIT] for key, value in {**tags, "adapter/digest": digest}.items()}
            created = store.client.create_model_version(
                model_name(concept), f"models:/{logged}", run_id, tags=limited, model_id=logged
            )
            number = int(created.version)
        else:
            number = found.number
            set_tags(store, concept, number, tags)
        if aliases(store, concept).get(CHAMPION) != number:
            store.client.set_registered_model_alias(model_name(concept), CHALLENGER, str(number))
        return version(store, concept, number)


def _whole(store: Store, found: Version | None) -> Version | None:
    """The version, if its bytes are what they were; otherwise it is tagged, and None."""
    if found is None:
        return None
    try:
        with adapter_folder(store, found.concept, found.number):
            return found
    except IntegrityError as error:
        set_tags(store, found.concept, found.number, {BROKEN: str(error)})
        return None


def _make_registered_model(store: Store, concept: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is there already
        store.client.create_registered_model(model_name(concept))


def _log_model(store: Store, concept: str, adapter: Path, *, run_id: str, base: Mapping[str, Any]) -> str:
    import mlflow

    from components.tracking import pyfunc

    store.activate()
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        return pyfunc.log(concept, adapter, redact_values(base))


@contextlib.contextmanager
def adapter_folder(store: Store, concept: str, number: int) -> Iterator[Path]:
    """The adapter folder of a version, fetched from the store and verified against its manifest and its tag.

    Raises:
        IntegrityError: bytes are missing or changed, or the content is not what the version's tag says.
    """
    import tempfile

    import mlflow
    from mlflow.exceptions import MlflowException

    known = version(store, concept, number)
    store.activate()
    source = f"models:/{model_name(concept)}/{number}"
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        try:
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/artifacts/{ADAPTER}", dst_path=temporary, tracking_uri=store.uri
            )
        except (MlflowException, OSError) as error:
            raise IntegrityError(f"{source}: its adapter cannot be fetched: {error}") from error
        folder = Path(fetched)
        verify_manifest(folder)
        digest = content_digest(folder)
        stated = known.tags.get("adapter/digest")
        if digest != stated:
            raise IntegrityError(f"{source}: content digest {digest[:12]}, registered as {str(stated)[:12]}")
        yield folder
