"""Signatures, what may be in an adapter folder, and what gc may take."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import IntegrityError
from components.files import atomic_folder
from components.settings import Gate
from components.tracking import blessings, bundles, garbage, promotion, registry, runs, signing, succession
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
        promotion.promote(store, "star", number, reason="tried")  # 3 champion, 2 previous, 5 challenger
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


def test_gc_does_not_take_the_bytes_of_a_registration_that_was_under_way_when_it_looked(
    store: Store, make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(store, "star", register(store, make_adapter(b"1", "a")))
    seen: list[garbage.Waste] = []
    real = registry._require_arrived

    def look(store: Store, logged: str, digest: str) -> None:  # the model is logged, its version is not made yet
        real(store, logged, digest)
        seen.extend(garbage.find(store, ["star"]))

    monkeypatch.setattr(registry, "_require_arrived", look)
    number = register(store, make_adapter(b"2", "b"))
    (waste,) = seen
    assert waste.version is None
    assert garbage.remove(store, seen) == []
    (check,) = promotion.verify(store, "star", number)
    assert check.ok, check.detail


def test_gc_takes_no_model_where_a_version_does_not_say_what_holds_its_bytes(store: Store, make_adapter: Make) -> None:
    register(store, make_adapter(b"1", "a"))
    with runs.run(store, "star", "cut off") as tracker:
        registry._log_model(store, "star", make_adapter(b"9", "cut"), run_id=tracker.run_id, base={}, recording=None)
    (waste,) = garbage.find(store, ["star"])
    store.client.create_model_version("purecc-star", "file:///somewhere")  # meanwhile, as by another tool
    assert garbage.remove(store, [waste]) == []
    assert garbage.find(store, ["star"]) == []


@pytest.mark.parametrize(
    ("requires", "tags", "problem"),
    [
        ((), {}, None),  # a profile with promotion.servability=false asks for nothing
        (("servability",), {}, "servability: it was not looked at"),
        (("servability",), {"servability/status": "refused", "servability/refused": "draws noise"}, "draws noise"),
        (("servability",), {"servability/status": "passed"}, None),
        (("approval",), {}, "approval: it was not looked at"),
        (("approval",), {"approval/status": "refused", "approval/refused": "Ada did not agree"}, "Ada did not agree"),
        (("approval",), {"approval/status": "passed", "approval/by": "Ada"}, None),
    ],
)
def test_a_champion_set_by_hand_without_its_blessings_is_told(
    store: Store, make_adapter: Make, requires: tuple[str, ...], tags: dict[str, str], problem: str | None
) -> None:
    number = register(store, make_adapter(b"1"))
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.5)})
    promotion.record_judgement(store, "star", number, report, key="k", against=None, requires=requires)
    digest = registry.version(store, "star", number).tags["adapter/digest"]
    if tags:
        keys = blessings.SERVABILITY if "servability" in requires else blessings.APPROVAL
        registry.set_tags(store, "star", number, blessings.bound(digest, tags, keys))
    (check,) = promotion.verify(store, "star", number)
    assert check.ok  # whatever was found, it is the truth about a version that is not the champion
    store.client.set_registered_model_alias("purecc-star", "champion", str(number))
    (check,) = promotion.verify(store, "star", number)
    assert check.ok == (problem is None)
    assert problem is None or problem in check.detail
    assert set(requires) & set(check.passed) == (set(requires) if problem is None else set())


def test_an_approval_of_another_version_is_told(store: Store, make_adapter: Make) -> None:
    asked, other = register(store, make_adapter(b"1", "a")), register(store, make_adapter(b"2", "b"))
    tags = blessings.approval_tags(registry.version(store, "star", other), approved=True, by="Ada", note="")
    registry.set_tags(store, "star", asked, tags)
    (check,) = promotion.verify(store, "star", asked)
    assert check.problems == ("its approval report speaks of another version or was altered",)
    assert "approval" not in check.passed


def test_the_key_that_a_profile_asks_for_holds_for_rollback_repair_and_verify(
    store: Store, make_adapter: Make, keys: tuple[Path, Path]
) -> None:
    for number in (1, 2):
        register(store, make_adapter(bytes([number]), f"a{number}"))
        promotion.promote(store, "star", number, reason="tried")
    with pytest.raises(PromotionRefused, match="not signed"):
        promotion.rollback(store, "star", public_key=keys[1])
    assert [check.ok for check in promotion.verify(store, "star", public_key=keys[1])] == [False, False]
    assert [check.ok for check in promotion.verify(store, "star")] == [True, True]
    repair = succession.reconcile(store, "star", replace_broken=True, public_key=keys[1])
    assert repair is not None
    assert (repair.action, repair.champion) == ("lost", 2)
    assert succession.reconcile(store, "star", replace_broken=True) is None
