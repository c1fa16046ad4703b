"""Registered adapters: `purecc-<concept>`, one version per adapter content, with its evidence as tags.

Tags of a version: `adapter/digest` (content), `base/fingerprint`, `data/fingerprint`, `profile/digest`, `run`,
`evaluation/key`, `evaluation/metrics` (JSON), `gate/status` (passed, refused), `gate/refused` (the reason),
`gate/table` (JSON), `gate/key` (what was judged against what), `gate/digest` (binds them to this adapter),
`servability/...` and `approval/...` likewise, `inputs/*` (what a judged version was made from: see
`components.planning`), `recording/digest` (the picture that comes with the model), `signature/bundle`,
`promotion/replaced` (the champion before it), `promotion/reason`, `promotion/sequence`, `promotion/rolled_back` (why),
`integrity/broken` (what was found when its bytes no longer matched).
Tags of the registered model: see `components.tracking.succession`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import IntegrityError, InvalidInput
from components.files import MANIFEST, digest_of, folder_digests, read_manifest, verify_manifest
from components.model_folder import safetensors_problem
from components.provenance import PROVENANCE
from components.secrets import redact, redact_values
from components.tracking import signing
from components.tracking.store import ABSENT, THERE, PassingOver, Store, is_away

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
PREFIX = "purecc-"
ADAPTER, RECORDING = "adapter", "recording"
RECORDING_DIGEST = "recording/digest"
BROKEN = "integrity/broken"
ADAPTER_FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "concept_embeddings.safetensors",
    "weight_differences.safetensors",
    "concept.yaml",
    PROVENANCE,
    MANIFEST,
}
_TAG_LIMIT = 90_000  # characters of a version's tag
_IDENTITY = ("data/", "base/")  # of the bytes: a second run that comes to the same adapter does not change them


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
    with PassingOver(ABSENT):
        model = store.client.get_registered_model(model_name(concept))
        return {name: int(version) for name, version in model.aliases.items()}
    return {}


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


def remove_tag(store: Store, concept: str, number: int, key: str) -> None:
    """Remove a tag of a version, if it is there."""
    if key in version(store, concept, number).tags:
        store.client.delete_model_version_tag(model_name(concept), str(number), key)


def model_tags(store: Store, concept: str) -> dict[str, str]:
    """Tags of the registered model; empty where there is none."""
    with PassingOver(ABSENT):
        return dict(store.client.get_registered_model(model_name(concept)).tags)
    return {}


def set_model_tag(store: Store, concept: str, key: str, value: str) -> None:
    store.client.set_registered_model_tag(model_name(concept), key, value)


def remove_model_tag(store: Store, concept: str, key: str) -> None:
    if key in model_tags(store, concept):
        store.client.delete_registered_model_tag(model_name(concept), key)


def register(
    store: Store,
    concept: str,
    adapter: Path,
    *,
    run_id: str,
    base: Mapping[str, Any],
    tags: Mapping[str, str],
    recording: Path | None = None,
) -> Version:
    """Register an adapter folder as a version of `purecc-<concept>`, alias `challenger`; the same content only once.

    The version is made only after what was logged has been fetched again and every digest found right.

    Args:
        adapter: finished adapter folder (with manifest).
        run_id: the MLflow run that logs the model.
        base: base settings and fingerprint, for consumers that load the adapter.
        tags: evidence, see the module.
        recording: folder with a picture of this adapter and how it was drawn (`components.serving.recording`); it
            travels with the model.

    Raises:
        IntegrityError: the folder does not match its manifest, is not an adapter's, or did not arrive whole.
    """
    verify_manifest(adapter, foreign=True)
    require_adapter_files(adapter)
    digest = content_digest(adapter)
    with store.lock(f"registry-{concept}"):
        found = _whole(store, by_digest(store, concept, digest), recorded=recording is not None)
        if found is None:
            logged = _log_model(store, concept, adapter, run_id=run_id, base=base, recording=recording)
            _require_arrived(store, logged, digest)
            make_registered_model(store, concept)
            more = {"adapter/digest": digest}
            if recording is not None:
                more[RECORDING_DIGEST] = digest_of(folder_digests(recording))
            signature = signing.configured_signature(adapter)
            if signature is not None:
                more[signing.TAG] = signature
            limited = {key: redact(value)[:_TAG_LIMIT] for key, value in {**tags, **more}.items()}
            created = store.client.create_model_version(
                model_name(concept), f"models:/{logged}", run_id, tags=limited, model_id=logged
            )
            number = int(created.version)
        else:
            number = found.number
            set_tags(
                store, concept, number, {key: value for key, value in tags.items() if not key.startswith(_IDENTITY)}
            )
        if aliases(store, concept).get(CHAMPION) != number:
            store.client.set_registered_model_alias(model_name(concept), CHALLENGER, str(number))
        return version(store, concept, number)


def _whole(store: Store, found: Version | None, *, recorded: bool) -> Version | None:
    """The version, if its bytes are what they were; otherwise it is tagged, and None.

    Args:
        recorded: it also has to come with a recording.
    """
    if found is None or (recorded and RECORDING_DIGEST not in found.tags):
        return None
    try:
        with adapter_folder(store, found.concept, found.number):
            return found
    except IntegrityError as error:
        set_tags(store, found.concept, found.number, {BROKEN: str(error)})
        return None


def _require_arrived(store: Store, logged: str, digest: str) -> None:
    """Fetch what was logged and compare it with what was sent."""
    with fetched(store, store.client.get_logged_model(logged).artifact_location, ADAPTER) as folder:
        try:
            verify_manifest(folder)
        except IntegrityError as error:
            raise IntegrityError(
                f"{str(error).replace(str(folder), f'models:/{logged}')}: the upload did not arrive whole, try again"
            ) from error
        found = content_digest(folder)
    if found != digest:
        raise IntegrityError(f"models:/{logged}: content digest {found[:12]} arrived, {digest[:12]} was sent")


def make_registered_model(store: Store, concept: str) -> None:
    """Make the registered model of a concept where there is none."""
    with PassingOver(THERE):
        store.client.create_registered_model(model_name(concept))


def _log_model(
    store: Store, concept: str, adapter: Path, *, run_id: str, base: Mapping[str, Any], recording: Path | None
) -> str:
    import mlflow

    from components.tracking import pyfunc

    store.activate()
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        return pyfunc.log(concept, adapter, redact_values(base), recording)


@contextlib.contextmanager
def fetched(store: Store, source: str, artifact: str) -> Iterator[Path]:
    """A folder of a logged model, fetched from the store into a temporary place.

    Args:
        source: the model's location, or the URI of a version.

    Raises:
        IntegrityError: it cannot be fetched.
        MlflowException: the store does not answer.
    """
    import tempfile

    import mlflow
    from mlflow.exceptions import MlflowException

    store.activate()
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/artifacts/{artifact}", dst_path=temporary, tracking_uri=store.uri
            )
        except (MlflowException, OSError) as error:
            if is_away(error):  # a server that is being restarted says nothing about the bytes
                raise
            raise IntegrityError(f"{source}: its {artifact} cannot be fetched: {error}") from error
        yield Path(path)


@contextlib.contextmanager
def adapter_folder(store: Store, concept: str, number: int) -> Iterator[Path]:
    """The adapter folder of a version, fetched from the store and verified against its manifest and its tag.

    Raises:
        IntegrityError: bytes are missing or changed, or the content is not what the version's tag says.
    """
    known = version(store, concept, number)
    source = f"models:/{model_name(concept)}/{number}"
    with fetched(store, source, ADAPTER) as folder:
        try:
            verify_manifest(folder, foreign=True)
            require_adapter_files(folder)
        except IntegrityError as error:  # the version is what a person knows, not where it was fetched to
            raise IntegrityError(str(error).replace(str(folder), source)) from error
        digest = content_digest(folder)
        stated = known.tags.get("adapter/digest")
        if digest != stated:
            raise IntegrityError(f"{source}: content digest {digest[:12]}, registered as {str(stated)[:12]}")
        yield folder


def require_adapter_files(folder: Path) -> None:
    """Check that a folder holds nothing but an adapter's files, and that weights are safetensors by their header.

    Raises:
        IntegrityError: each wrong file is named.
    """
    problems = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink() or not (file.is_file() and name in ADAPTER_FILES):
            problems.append(f"{name}: not a file of an adapter folder")
        elif file.suffix == ".safetensors" and (problem := safetensors_problem(file)) is not None:
            problems.append(problem)
    if problems:
        raise IntegrityError(f"{folder}: {'; '.join(problems)}")
