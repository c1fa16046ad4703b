from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from components.errors import IntegrityError, InvalidInput
from components.serving.requests import read_request
from components.settings import Gate
from components.tracking import promotion, pyfunc, registry, retirement, runs
from components.tracking.gates import judge
from components.tracking.promotion import ChampionChanged, PromotionRefused
from components.tracking.registry import Version
from components.tracking.store import Store

Make = Callable[..., Path]


def _register(store: Store, adapter: Path, *, score: float | None = 1.0) -> Version:
    """Register an adapter; judged against the champion and a minimum of 0.5 unless the score is None."""
    with runs.run(store, "star", "customize") as tracker:
        version = registry.register(
            store, "star", adapter, run_id=tracker.run_id, base={"fingerprint": "f"}, tags={"run": tracker.run_id}
        )
    if score is not None:
        report, champion = judge({"m": score}, {"m": Gate(minimum=0.5)}), registry.by_alias(store, "star")
        against = champion.tags["adapter/digest"] if champion else None
        promotion.record_judgement(store, "star", version.number, report, key="k", against=against)
    return version


def _promoted(store: Store, adapter: Path) -> int:
    number = _register(store, adapter).number
    promotion.promote(store, "star", number)
    return number


def _stored(store: Store, number: int) -> Path:
    """The adapter file of a version inside the store."""
    files = sorted((store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors"))
    digest = registry.version(store, "star", number).tags["adapter/digest"]
    return next(file for file in files if registry.content_digest(file.parent) == digest)


def test_first_champion(store: Store, make_adapter: Make) -> None:
    version = _register(store, make_adapter(b"1"))
    assert registry.aliases(store, "star") == {"challenger": 1}
    assert promotion.promote(store, "star", version.number) is None
    assert registry.aliases(store, "star") == {"champion": 1}
    assert registry.list_models(store) == {"star": {"champion": 1}}


def test_a_logged_model_states_what_it_takes_gives_and_needs(store: Store, make_adapter: Make) -> None:
    _register(store, make_adapter(b"1"))
    (file,) = (store.root / "mlruns" / "artifacts").rglob("MLmodel")
    stated = yaml.safe_load(file.read_text())
    takes, gives = (json.loads(stated["signature"][side]) for side in ("inputs", "outputs"))
    assert {each["name"] for each in takes if each["required"]} == {"prompt"}
    assert {each["name"]: each["type"] for each in gives} == {"png": "binary", "facts": "string"}
    example = json.loads((file.parent / stated["saved_input_example_info"]["artifact_path"]).read_text())
    (row,) = [dict(zip(example["columns"], values, strict=True)) for values in example["data"]]
    assert {each["name"] for each in takes} == set(row)
    assert read_request(row).prompt == "a <star> on the left"
    serving = json.loads((file.parent / stated["saved_input_example_info"]["serving_input_path"]).read_text())
    assert serving["dataframe_split"] == {"columns": example["columns"], "data": example["data"]}
    needed = (file.parent / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in needed)
    assert sorted(needed) == sorted(pyfunc.requirements()), "what a process is started with that will try the model"
    assert {line.partition("==")[0] for line in needed} >= {"torch", "diffusers", "peft", "mlflow"}


def test_the_same_content_is_registered_once_whatever_run_made_it(store: Store, make_adapter: Make) -> None:
    first = _register(store, make_adapter(b"1", "a", provenance='{"run": 1}'))
    again = _register(store, make_adapter(b"1", "b", provenance='{"run": 2}'))
    other = _register(store, make_adapter(b"2", "c"))
    assert (first.number, again.number, other.number) == (1, 1, 2)


def test_a_refused_version_stays_with_its_reason_and_never_becomes_champion(store: Store, make_adapter: Make) -> None:
    champion = _promoted(store, make_adapter(b"1", "a"))
    refused = _register(store, make_adapter(b"2", "b"), score=0.25)
    with pytest.raises(PromotionRefused, match=r"m = 0\.25, needs >= 0\.5"):
        promotion.promote(store, "star", refused.number)
    found = registry.version(store, "star", refused.number)
    assert found.status == "refused"
    assert found.tags["gate/refused"] == "m = 0.25, needs >= 0.5"
    assert json.loads(found.tags["gate/table"])[0]["passed"] is False
    assert registry.aliases(store, "star")["champion"] == champion


def test_a_version_that_was_never_judged_is_not_promoted(store: Store, make_adapter: Make) -> None:
    version = _register(store, make_adapter(b"1"), score=None)
    with pytest.raises(PromotionRefused, match="never judged"):
        promotion.promote(store, "star", version.number)


def test_a_version_that_passes_on_a_second_judgement_loses_the_reason(store: Store, make_adapter: Make) -> None:
    version = _register(store, make_adapter(b"1"), score=0.1)
    report = judge({"m": 0.1}, {"m": Gate(minimum=0.0)})
    promotion.record_judgement(store, "star", version.number, report, key="k2", against=None)
    assert "gate/refused" not in registry.version(store, "star", version.number).tags
    promotion.promote(store, "star", version.number)


def test_promotion_and_rollback_walk_back_version_by_version(store: Store, make_adapter: Make) -> None:
    numbers = [_promoted(store, make_adapter(bytes([number]), f"a{number}")) for number in range(3)]
    assert numbers == [1, 2, 3]
    assert registry.aliases(store, "star") == {"champion": 3, "previous": 2}
    assert promotion.rollback(store, "star") == (3, 2)
    assert registry.aliases(store, "star") == {"champion": 2, "previous": 1}
    assert registry.version(store, "star", 3).tags["promotion/rolled_back"] == "no reason was given"
    assert promotion.rollback(store, "star") == (2, 1)
    assert registry.aliases(store, "star") == {"champion": 1}
    with pytest.raises(PromotionRefused, match="no previous"):
        promotion.rollback(store, "star")
    assert promotion.promote(store, "star", 3, reason="the complaint was about version 2") == 1
    assert registry.aliases(store, "star") == {"champion": 3, "previous": 1}
    tags = registry.version(store, "star", 3).tags
    assert "promotion/rolled_back" not in tags
    assert tags["promotion/reason"] == "the complaint was about version 2"


def test_a_version_judged_against_another_champion_needs_a_reason(store: Store, make_adapter: Make) -> None:
    numbers = [_register(store, make_adapter(bytes([number]), f"a{number}")).number for number in range(2)]
    assert promotion.promote(store, "star", numbers[0]) is None  # judged when there was no champion: there is none
    with pytest.raises(promotion.StaleJudgement, match="judged against no champion, and version 1 is the champion now"):
        promotion.promote(store, "star", numbers[1])
    third = _promoted(store, make_adapter(b"3", "c"))
    with pytest.raises(PromotionRefused, match=r"judge it again with purecc customize star, or .* --reason TEXT"):
        promotion.promote(store, "star", numbers[1])
    assert promotion.rollback(store, "star") == (third, 1)
    assert promotion.promote(store, "star", third) == 1  # it was judged against version 1
    assert registry.version(store, "star", third).tags["promotion/reason"] == "every gate is passed"
    assert promotion.promote(store, "star", numbers[1], reason="the other one draws the wrong logo") == third
    tags = registry.version(store, "star", numbers[1]).tags
    assert tags["promotion/reason"] == "the other one draws the wrong logo"


def test_without_a_champion_no_judgement_is_stale(store: Store, make_adapter: Make) -> None:
    _promoted(store, make_adapter(b"1", "a"))
    second = _register(store, make_adapter(b"2", "b")).number
    retirement.retire(store, "star", 1, "its data is gone")
    assert promotion.promote(store, "star", second) is None


def test_promoting_the_champion_again_changes_nothing(store: Store, make_adapter: Make) -> None:
    _promoted(store, make_adapter(b"1", "a"))
    _promoted(store, make_adapter(b"2", "b"))
    assert promotion.promote(store, "star", 2) is None
    assert registry.aliases(store, "star") == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("harm", ["changed", "missing", "added"])
def test_bytes_that_changed_in_the_store_are_found_and_never_promoted(
    store: Store, make_adapter: Make, harm: str
) -> None:
    champion = _promoted(store, make_adapter(b"1", "a"))
    version = _register(store, make_adapter(b"22", "b"))
    file = _stored(store, version.number)
    if harm == "changed":
        file.write_bytes(b"23")
    elif harm == "missing":
        file.unlink()
    else:
        (file.parent / "extra.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        promotion.promote(store, "star", version.number)
    assert registry.aliases(store, "star")["champion"] == champion
    checks = {check.version: check for check in promotion.verify(store, "star")}
    assert checks[champion].ok
    assert not checks[version.number].ok


def test_a_whole_swap_of_adapter_and_manifest_is_found_by_the_registered_digest(
    store: Store, make_adapter: Make
) -> None:
    version = _register(store, make_adapter(b"1", "a"))
    inside, other = _stored(store, version.number).parent, make_adapter(b"2", "b")
    for file in other.iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError, match="registered as"):
        promotion.promote(store, "star", version.number)


def test_registering_again_heals_a_version_whose_bytes_are_gone(store: Store, make_adapter: Make) -> None:
    adapter = make_adapter(b"1")
    first = _register(store, adapter)
    _stored(store, first.number).unlink()
    second = _register(store, adapter)
    assert second.number == 2
    assert registry.BROKEN in registry.version(store, "star", 1).tags
    promotion.promote(store, "star", 2)


def test_an_adapter_that_does_not_match_its_manifest_is_not_registered(store: Store, make_adapter: Make) -> None:
    adapter = make_adapter(b"1")
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    with pytest.raises(IntegrityError):
        _register(store, adapter)
    assert registry.list_models(store) == {}


def test_a_judgement_is_void_if_another_run_promoted_meanwhile(store: Store, make_adapter: Make) -> None:
    candidate = _register(store, make_adapter(b"1", "a"))
    other = _promoted(store, make_adapter(b"2", "b"))
    with pytest.raises(ChampionChanged):
        promotion.promote(store, "star", candidate.number, judged=(None,))
    assert promotion.promote(store, "star", candidate.number, judged=(other,)) == other


def test_racing_promoters_end_with_one_champion_and_its_true_predecessor(store: Store, make_adapter: Make) -> None:
    numbers = [_register(store, make_adapter(bytes([n]), f"a{n}")).number for n in range(4)]
    promote, asked = promotion.promote, {"reason": "tried"}  # judged when there was no champion
    threads = [threading.Thread(target=promote, args=(store, "star", number), kwargs=asked) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aliases = registry.aliases(store, "star")
    champion = registry.version(store, "star", aliases["champion"])
    assert champion.tags["promotion/replaced"] == str(aliases["previous"])
    assert aliases["champion"] != aliases["previous"]


def test_what_is_not_registered_is_named_with_what_is(store: Store, make_adapter: Make) -> None:
    with pytest.raises(InvalidInput, match="train one first"):
        promotion.verify(store, "nothing")
    _promoted(store, make_adapter(b"1"))
    with pytest.raises(InvalidInput, match="registered: star"):
        promotion.rollback(store, "heart")
    with pytest.raises(InvalidInput, match="known versions: 1"):
        promotion.promote(store, "star", 7)
