"""Bundles and retirement on a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import IntegrityError
from components.files import read_manifest, write_json, write_manifest
from components.tracking import bundles, promotion, registry, retirement, runs
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


def pinned(store: Store, adapter: Path) -> registry.Version:
    """A bundle of one registered concept."""
    with runs.run(store, "star", "customize") as tracker:
        known = registry.register(store, "star", adapter, run_id=tracker.run_id, base={}, tags={})
        pin = {"name": "star", "version": known.number, "adapter": registry.content_digest(adapter)}
        content = {"mode": "independent", "concepts": [pin]}
        return bundles.register(store, tracker.run_id, key="k", content=content, adapters={"star": adapter}, refused="")


def test_a_bundle_is_verified_with_every_version_that_it_pins(store: Store, make_adapter: Callable[..., Path]) -> None:
    pinned(store, make_adapter(b"weights"))
    (check,) = promotion.verify(store, bundles.NAME)
    assert (check.ok, check.version, check.passed) == (True, 1, ("manifest", "pins", "adapters", "versions"))


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("bundle/adapters/star/adapter_model.safetensors", "changed adapters/star/adapter_model.safetensors"),
        ("bundle/bundle.json", "changed bundle.json"),
        ("artifacts/adapter/adapter_model.safetensors", "purecc-star version 1"),
    ],
)
def test_a_bundle_whose_files_or_versions_changed_is_told(
    where: str, problem: str, store: Store, make_adapter: Callable[..., Path]
) -> None:
    pinned(store, make_adapter(b"weights"))
    (file,) = (each for each in (store.root / "mlruns" / "artifacts").rglob("*") if each.as_posix().endswith(where))
    file.write_bytes(b"changed")
    (check,) = promotion.verify(store, bundles.NAME)
    assert not check.ok
    assert problem in check.detail


def test_a_bundle_that_was_made_anew_around_other_pins_is_told(store: Store, make_adapter: Callable[..., Path]) -> None:
    pinned(store, make_adapter(b"weights"))
    (file,) = (store.root / "mlruns" / "artifacts").rglob("bundle.json")
    content = json.loads(file.read_text())
    content["concepts"][0]["version"] = 2
    write_json(file, content)
    write_manifest(file.parent)  # the folder is whole in itself
    (check,) = promotion.verify(store, bundles.NAME)
    assert set(check.problems) == {
        "its manifest is another than was registered",
        "bundle.json pins other versions than the registry",
    }


def test_a_bundle_whose_pinned_version_was_deleted_is_told(store: Store, make_adapter: Callable[..., Path]) -> None:
    pinned(store, make_adapter(b"weights"))
    store.client.delete_model_version("purecc-star", "1")
    (check,) = promotion.verify(store, bundles.NAME)
    assert "no version 1 of 'star'" in check.detail


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
