"""Tracking stores: migrated once per session, copied for each test (seconds become milliseconds)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from once import made_once
from safetensors.numpy import save_file

from components.files import atomic_folder
from components.tracking.store import Store, open_store


@pytest.fixture(scope="session")
def migrated_store(session_folder: Path) -> Path:
    """A project folder with an empty store. Do not write into it."""
    return made_once(session_folder / "migrated-store", open_store)


@pytest.fixture
def store(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of one's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "project"
    shutil.copytree(migrated_store, root)
    return open_store(root)


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter folder with a manifest; weights are bytes that tell it apart."""

    def make(weights: bytes, name: str = "adapter", provenance: str = "{}") -> Path:
        folder = tmp_path / name
        with atomic_folder(folder) as partial:
            save_file({"w": np.frombuffer(weights, np.uint8)}, partial / "adapter_model.safetensors")
            (partial / "provenance.json").write_text(provenance)
        return folder

    return make
