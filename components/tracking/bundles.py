"""The bundle: concepts that were checked together, registered as `purecc-bundle` with the versions it pins.

A version's files are `bundle.json` (mode, how the adapters act together, pins, checks) and a copy of every adapter, so
that it stays whole whatever becomes of the pinned versions. Tags: `bundle/key` (what was checked, by which an unchanged
bundle is recognised), `bundle/pins` (JSON), `gate/status`, `gate/refused`. The champion alias goes to a bundle that
passed its checks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.errors import IntegrityError
from components.files import atomic_folder, verify_manifest, write_json
from components.tracking import registry
from components.tracking.registry import CHALLENGER, CHAMPION, Version, model_name
from components.tracking.store import Store

NAME = "bundle"
FILE = "bundle.json"
_KEY = "bundle/key"
PINS = "bundle/pins"
"""Tag: JSON, concept -> version."""
_FOLDER = "bundle"


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
        content: what bundle.json says; its `concepts` are the pins.
        adapters: concept -> its adapter folder.
        refused: why the checks refuse it; empty if they do not.
    """
    from mlflow.exceptions import MlflowException

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
                store.client.log_artifacts(run_id, str(target), _FOLDER)
            with contextlib.suppress(MlflowException):  # it is there already
                store.client.create_registered_model(name)
            source = f"{store.client.get_run(run_id).info.artifact_uri}/{_FOLDER}"
            pins = json.dumps(content["concepts"], separators=(",", ":"))
            tags = {_KEY: key, PINS: pins, "run": run_id}
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
            raise IntegrityError(f"{model_name(NAME)} version {number} cannot be fetched: {error}") from error
        verify_manifest(Path(fetched))
        yield Path(fetched)
