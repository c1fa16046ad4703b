"""Signatures, what may be in an adapter folder, and what gc may take."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import IntegrityError
from components.files import atomic_folder
from components.settings import Gate
from components.tracking import bundles, garbage, promotion, registry, runs, signing
from components.tracking.gates import judge
from components.tracking.promotion import PromotionRefused
from components.tracking.store import Store

Make = Callable[..., Path]


def register(store: Store, adapter: Path, concept: str = "star") -> int:
    with runs.run(store, concept, "customize") as tracker:
        number = registry.register(
            store, concept, adapter, run_id=tracker.run_id, base={"fingerprint": "f"}, tags={"run": tracker.run_id}
        ).number
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.5)})
    promotion.record_judgement(store, concept, number, report, key="k", against=None)
    return number


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("model_signing", reason="the extra `signing`")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "key.pub").write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return tmp_path / "key.pem", tmp_path / "key.pub"


def test_with_a_public_key_only_what_its_pair_signed_is_promoted(
    store: Store, make_adapter: Make, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = register(store, make_adapter(b"1", "a"))
    monkeypatch.setenv(signing.SIGNING_KEY, str(keys[0]))
    signed = register(store, make_adapter(b"2", "b"))
    monkeypatch.setenv(signing.PUBLIC_KEY, str(keys[1]))
    with pytest.raises(PromotionRefused, match="not signed"):
        promotion.promote(store, "star", unsigned)
    promotion.promote(store, "star", signed)
    (check,) = promotion.verify(store, "star", signed)
    assert check.ok
    assert "signature" in check.passed
    # the signature of other bytes
    bundle = registry.version(store, "star", signed).tags[signing.TAG]
    registry.set_tags(store, "star", unsigned, {signing.TAG: bundle})
    with pytest.raises(PromotionRefused, match="does not verify"):
        promotion.promote(store, "star", unsigned)


@pytest.mark.parametrize("harm", ["pickle", "truncated", "stray", "link"])
def test_only_adapter_files_with_true_headers_are_registered(store: Store, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as partial:
        weights = partial / "adapter_model.safetensors"
        if harm == "pickle":
            weights.write_bytes(pickle.dumps({"w": [1, 2, 3]}))
        elif harm == "truncated":
            weights.write_bytes((1000).to_bytes(8, "little") + b'{"w":')
        elif harm == "stray":
            (partial / "weights.bin").write_bytes(b"x")
        else:
            (tmp_path / "elsewhere").write_bytes(b"x")
            weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=r"safetensors|not a file of an adapter"):
        register(store, folder)
    assert registry.list_models(store) == {}


def test_gc_takes_what_nothing_refers_to_and_refuses_the_rest(store: Store, make_adapter: Make) -> None:
    numbers = [register(store, make_adapter(bytes([n]), f"a{n}")) for n in range(5)]
    for number in numbers[:3]:
        promotion.promote(store, "star", number)  # 3 champion, 2 previous, 5 challenger
    store.client.create_registered_model("purecc-bundle")
    pins = '[{"name":"star","version":4,"adapter":"a"},{"name":"ball","version":null,"adapter":"b"}]'
    store.client.create_model_version("purecc-bundle", "nowhere", tags={bundles.PINS: pins})
    with runs.run(store, "star", "cut off") as tracker:
        registry._log_model(store, "star", make_adapter(b"9", "cut"), run_id=tracker.run_id, base={}, recording=None)

    found = garbage.find(store, ["star"])
    assert [(each.version, each.name) for each in found if each.version] == [(1, "star")]
    assert len([each for each in found if each.version is None]) == 1
    for number, keeper in ((2, "previous"), (3, "champion"), (4, "purecc-bundle"), (5, "challenger")):
        with pytest.raises(garbage.StillReferred, match=keeper):
            garbage.require_unreferred(store, "star", number)
    assert len(registry.versions(store, "star")) == 5  # looking touches nothing

    before = len(list((store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors")))
    assert garbage.remove(store, found) == found
    assert [version.number for version in registry.versions(store, "star")] == [5, 4, 3, 2]
    assert len(list((store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors"))) == before - 2
    assert all(check.ok for check in promotion.verify(store, "star"))
    assert garbage.find(store, ["star"]) == []
