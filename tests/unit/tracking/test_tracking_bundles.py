"""Bundles and retirement on a real registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import IntegrityError
from components.files import read_manifest
from components.tracking import bundles, registry, retirement, runs
from components.tracking.store import Store

CONTENT = {"mode": "independent", "concepts": [{"name": "star", "version": 3, "adapter": "a"}]}


def make(store: Store, adapter: Path, key: str = "k", refused: str = "") -> registry.Version:
    with runs.run(store, "_continual", "continual") as tracker:
        return bundles.register(
            store, tracker.run_id, key=key, content=CONTENT, adapters={"star": adapter}, refused=refused
        )


def test_a_bundle_pins_its_versions_holds_their_bytes_and_is_made_once(
    store: Store, make_adapter: Callable[..., Path]
) -> None:
    adapter = make_adapter(b"weights")
    first = make(store, adapter)
    assert (first.number, first.status, first.aliases) == (1, "passed", ("champion",))
    assert make(store, adapter).number == 1
    with bundles.bundle_folder(store, 1) as folder:
        assert "adapters/star/adapter_model.safetensors" in read_manifest(folder)
        stored = folder / "adapters" / "star" / "adapter_model.safetensors"
        assert stored.read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    second = make(store, make_adapter(b"other", "second"), key="k2", refused="bleeds")
    assert (second.number, second.status) == (2, "refused")
    assert registry.aliases(store, bundles.NAME) == {"champion": 1, "challenger": 2}


def test_a_damaged_bundle_is_not_handed_out(store: Store, make_adapter: Callable[..., Path]) -> None:
    make(store, make_adapter(b"weights"))
    (weights,) = (store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors")
    weights.write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="adapter_model.safetensors"), bundles.bundle_folder(store, 1):
        pass


def test_a_retired_concept_has_versions_and_no_champion(store: Store) -> None:
    client = store.client
    client.create_registered_model("purecc-star")
    with runs.run(store, "star", "run") as tracker:
        for alias in ("previous", "champion"):
            made = client.create_model_version("purecc-star", "file:///nowhere", tracker.run_id)
            client.set_registered_model_alias("purecc-star", alias, made.version)
    assert not retirement.retire(store, "star", 1, "its data is gone")  # not the champion (any more)
    assert retirement.retire(store, "star", 2, "its data is gone")
    assert "champion" not in registry.aliases(store, "star")
    assert registry.version(store, "star", 2).tags[retirement.RETIRED].endswith("its data is gone")
    assert not retirement.retire(store, "star", 2, "again")
