"""The bundle: concepts that were checked together, registered as `purecc-bundle` with the versions it pins.

A version's files are `bundle.json` (mode, how the adapters act together, pins, checks) and a copy of every adapter, so
that it stays whole whatever becomes of the pinned versions. Tags: `bundle/key` (what was checked, by which an unchanged
bundle is recognised), `bundle/pins` (JSON), `bundle/digest` (of its files), `gate/status`, `gate/refused`. The champion
alias goes to a bundle that passed its checks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import IntegrityError
from components.files import MANIFEST, atomic_folder, sha256_file, verify_manifest, write_json
from components.tracking import registry
from components.tracking.registry import CHALLENGER, CHAMPION, Version, model_name
from components.tracking.store import Store, is_away

NAME = "bundle"
FILE = "bundle.json"
_KEY = "bundle/key"
PINS = "bundle/pins"
"""Tag: JSON, what `pins` reads."""
_DIGEST = "bundle/digest"
_FOLDER = "bundle"


@dataclass(frozen=True)
class Pin:
    """One concept of a bundle.

    Attributes:
        version: the registered version; None in a sequence, whose adapters stand for each other.
        adapter: digest of the adapter's content.
    """

    name: str
    version: int | None
    adapter: str


def pins(version: Version) -> list[Pin]:
    """What a bundle's version pins."""
    return [Pin(**pin) for pin in json.loads(version.tags.get(PINS, "[]"))]


def problems_of(store: Store, version: Version) -> list[str]:
    """What is wrong with a bundle's own files: its manifest, its pins, the adapters that it holds."""
    try:
        with bundle_folder(store, version.number) as folder:
            problems = []
            if (stated := version.tags.get(_DIGEST)) is not None and stated != sha256_file(folder / MANIFEST):
                problems.append("its manifest is another than was registered")
            if json.loads((folder / FILE).read_text(encoding="utf-8"))["concepts"] != [
                asdict(p) for p in pins(version)
            ]:
                problems.append(f"{FILE} pins other versions than the registry")
            problems += [problem for pin in pins(version) if (problem := _adapter_problem(folder, pin)) is not None]
            return problems
    except (IntegrityError, OSError, ValueError, LookupError, TypeError) as error:
        return [str(error)]


def _adapter_problem(folder: Path, pin: Pin) -> str | None:
    try:
        found = registry.content_digest(folder / "adapters" / pin.name)
    except IntegrityError as error:
        return str(error).replace(f"{folder}/", "")
    return None if found == pin.adapter else f"adapters/{pin.name}: content {found[:12]}, pinned is {pin.adapter[:12]}"


def find(store: Store, key: str) -> Version | None:
    """The newest version that was checked under this key."""
    for version in registry.versions(store, NAME):
        if version.tags.get(_KEY) == key:
            return version
    return None


def register(
    store: Store, run_id: str, *, key: str, content: Mapping[str, Any], adapters: Mapping[str, Path], refused: str
) -> Version:
    """Register a bundle, once per key; the one that passed becomes the champion.

    Args:
        run_id: the MLflow run that holds the files.
        key: digest of the pins and of everything the checks depend on.
        content: what bundle.json says; its `concepts` are the pins, as JSON of `Pin`.
        adapters: concept -> its adapter folder.
        refused: why the checks refuse it; empty if they do not.
    """

    name = model_name(NAME)
    with store.lock(f"registry-{NAME}"):
        found = find(store, key)
        if found is None:
            with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
                target = Path(temporary) / _FOLDER
                with atomic_folder(target) as folder:
                    write_json(folder / FILE, dict(content))
                    for concept, adapter in adapters.items():
                        shutil.copytree(adapter, folder / "adapters" / concept)
                digest = sha256_file(target / MANIFEST)
                store.client.log_artifacts(run_id, str(target), _FOLDER)
            registry.make_registered_model(store, NAME)
            source = f"{store.client.get_run(run_id).info.artifact_uri}/{_FOLDER}"
            pinned = json.dumps(content["concepts"], separators=(",", ":"))
            tags = {_KEY: key, PINS: pinned, _DIGEST: digest, "run": run_id}
            created = store.client.create_model_version(name, source, run_id, tags=tags)
            found = registry.version(store, NAME, int(created.version))
        status = {"gate/status": "refused" if refused else "passed", "gate/refused": refused}
        registry.set_tags(store, NAME, found.number, status)
        alias = CHALLENGER if refused else CHAMPION
        store.client.set_registered_model_alias(name, alias, str(found.number))
        return registry.version(store, NAME, found.number)


@contextlib.contextmanager
def bundle_folder(store: Store, number: int) -> Iterator[Path]:
    """The files of a bundle, fetched and verified.

    Raises:
        InvalidInput: no such version.
        IntegrityError: a file is missing or changed.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    version = registry.version(store, NAME, number)
    store.activate()
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        try:
            fetched = mlflow.artifacts.download_artifacts(
                run_id=version.tags["run"], artifact_path=_FOLDER, dst_path=temporary, tracking_uri=store.uri
            )
        except (MlflowException, OSError) as error:
            if is_away(error):
                raise
            raise IntegrityError(f"{model_name(NAME)} version {number} cannot be fetched: {error}") from error
        verify_manifest(Path(fetched))
        yield Path(fetched)
