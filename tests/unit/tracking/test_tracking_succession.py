"""The aliases' move: cut off after every single write to the registry, interfered with from outside, raced for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.settings import Gate
from components.tracking import promotion, registry, runs, succession
from components.tracking.gates import GateReport, judge
from components.tracking.promotion import PromotionRefused
from components.tracking.store import Store

Make = Callable[..., Path]
WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_tag",
    "delete_registered_model_tag",
)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@contextmanager
def killed_at(store: Store, number: int) -> Iterator[list[str]]:
    """The process ends before its write `number` to the registry; gives the writes that were done."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            real = getattr(store.client, name)

            def write(*arguments: Any, name: str = name, real: Any = real) -> Any:
                if len(done) == number:
                    raise Killed
                done.append(name)
                return real(*arguments)

            patch.setattr(store.client, name, write)
        yield done


def register(store: Store, adapter: Path, *, score: float = 1.0) -> int:
    with runs.run(store, "star", "customize") as tracker:
        number = registry.register(
            store, "star", adapter, run_id=tracker.run_id, base={"fingerprint": "f"}, tags={"run": tracker.run_id}
        ).number
    report = judge({"m": score}, {"m": Gate(minimum=0.5)})
    promotion.record_judgement(store, "star", number, report, key="k", against=None)
    return number


def harm(store: Store, number: int) -> None:
    """Delete a version's weights behind the registry."""
    digest = registry.version(store, "star", number).tags["adapter/digest"]
    for file in (store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors"):
        if registry.content_digest(file.parent) == digest:
            file.unlink()


@pytest.fixture
def promoted(store: Store, make_adapter: Make) -> tuple[int, int, int]:
    """Versions 1 (previous), 2 (champion) and 3 (challenger, which passed)."""
    numbers = tuple(register(store, make_adapter(bytes([n]), f"a{n}")) for n in range(3))
    promotion.promote(store, "star", numbers[0])
    promotion.promote(store, "star", numbers[1], reason="tried")  # all were judged when there was no champion
    return numbers  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["promotion", "rollback"])
def test_a_move_cut_off_anywhere_is_completed(store: Store, promoted: tuple[int, int, int], kind: str) -> None:
    after = {"champion": 3, "previous": 2} if kind == "promotion" else {"champion": 1}
    cuts = 0
    for number in range(40):
        finished = True
        with killed_at(store, number) as done:
            try:
                if kind == "promotion":
                    promotion.promote(store, "star", 3, reason="tried")
                else:
                    promotion.rollback(store, "star", "tried")
            except Killed:
                finished = False
        repair = succession.reconcile(store, "star")
        found = registry.aliases(store, "star")
        aliases = {alias: found[alias] for alias in ("champion", "previous") if alias in found}
        assert succession.pending(store, "star") is None
        if finished:
            assert (repair, aliases) == (None, after)
            break
        if not done:  # nothing was written down yet: nothing has happened
            assert (repair, aliases) == (None, {"champion": 2, "previous": 1})
            continue
        assert repair is not None
        assert (repair.action, aliases) == ("completed", after)
        cuts += 1
        # back to where it began, for the next cut
        store.client.set_registered_model_alias("purecc-star", "champion", "2")
        store.client.set_registered_model_alias("purecc-star", "previous", "1")
        beginning = json.dumps({"champion": 2, "previous": 1, "sequence": 2})
        store.client.set_registered_model_tag("purecc-star", succession.STATE, beginning)
    assert cuts >= 5
    assert finished


def test_a_half_done_move_to_a_version_that_broke_is_undone(store: Store, promoted: tuple[int, int, int]) -> None:
    with killed_at(store, 2), pytest.raises(Killed):
        promotion.promote(store, "star", 3, reason="tried")
    harm(store, 3)
    repair = succession.reconcile(store, "star")
    assert repair is not None
    assert (repair.action, repair.champion) == ("undone", 2)
    assert registry.aliases(store, "star")["champion"] == 2
    assert registry.aliases(store, "star")["previous"] == 1


def test_the_next_promotion_settles_what_was_cut_off(store: Store, promoted: tuple[int, int, int]) -> None:
    with killed_at(store, 1), pytest.raises(Killed):
        promotion.promote(store, "star", 3, reason="tried")
    assert promotion.rollback(store, "star", "after all") == (3, 2)
    assert registry.version(store, "star", 3).tags["promotion/rolled_back"] == "after all"


def test_a_deleted_alias_comes_back(store: Store, promoted: tuple[int, int, int]) -> None:
    store.client.delete_registered_model_alias("purecc-star", "champion")
    repair = succession.reconcile(store, "star")
    assert repair is not None
    assert (repair.action, repair.champion) == ("restored", 2)
    assert registry.aliases(store, "star")["champion"] == 2
    assert succession.reconcile(store, "star") is None


def test_a_deleted_champion_is_replaced_by_the_one_before(store: Store, promoted: tuple[int, int, int]) -> None:
    store.client.delete_model_version("purecc-star", "2")
    repair = succession.reconcile(store, "star")
    assert repair is not None
    assert (repair.action, repair.champion) == ("restored", 1)


def test_an_alias_set_by_hand_is_adopted_only_if_the_version_may_bear_it(
    store: Store, promoted: tuple[int, int, int], make_adapter: Make
) -> None:
    refused = register(store, make_adapter(b"bad", "bad"), score=0.1)
    store.client.set_registered_model_alias("purecc-star", "champion", str(refused))
    repair = succession.reconcile(store, "star")
    assert repair is not None
    assert (repair.action, repair.champion) == ("restored", 2)
    store.client.set_registered_model_alias("purecc-star", "champion", "3")
    repair = succession.reconcile(store, "star")
    assert repair is not None
    assert (repair.action, repair.champion) == ("adopted", 3)


def test_a_champion_without_bytes_is_replaced_only_when_asked(store: Store, promoted: tuple[int, int, int]) -> None:
    harm(store, 2)
    assert succession.reconcile(store, "star") is None
    repair = succession.reconcile(store, "star", replace_broken=True)
    assert repair is not None
    assert (repair.action, repair.champion) == ("replaced", 1)
    harm(store, 1)
    repair = succession.reconcile(store, "star", replace_broken=True)
    assert repair is not None
    assert (repair.action, repair.champion) == ("lost", 1)
    assert "train it again" in repair.detail


def test_the_report_of_another_version_does_not_count(
    store: Store, promoted: tuple[int, int, int], make_adapter: Make
) -> None:
    refused = register(store, make_adapter(b"bad", "bad"), score=0.1)
    stolen = {key: value for key, value in registry.version(store, "star", 2).tags.items() if key.startswith("gate/")}
    registry.set_tags(store, "star", refused, stolen)
    with pytest.raises(PromotionRefused, match="speaks of another version"):
        promotion.promote(store, "star", refused)
    (check,) = promotion.verify(store, "star", refused)
    assert not check.ok
    assert "another version" in check.detail


def test_a_changed_report_does_not_count(store: Store, promoted: tuple[int, int, int], make_adapter: Make) -> None:
    refused = register(store, make_adapter(b"bad", "bad"), score=0.1)
    registry.set_tags(store, "star", refused, {"gate/status": "passed"})
    with pytest.raises(PromotionRefused, match="was altered"):
        promotion.promote(store, "star", refused)


def test_order_is_told_by_a_counter_and_not_by_a_clock(
    store: Store, promoted: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.0)
    promotion.promote(store, "star", 3, reason="tried")
    tags = [registry.version(store, "star", number).tags["promotion/sequence"] for number in (1, 2, 3)]
    assert tags == ["1", "2", "3"]
    assert promotion.rollback(store, "star") == (3, 2)


@pytest.mark.slow
def test_of_many_racing_promoters_the_best_wins_and_none_is_lost(store: Store, make_adapter: Make) -> None:
    scores = {register(store, make_adapter(bytes([n]), f"a{n}")): float(n) for n in range(4)}
    gates = {"m": Gate(minimum=1.0, not_worse_by=0.0)}
    outcome: dict[int, GateReport] = {}

    def run(number: int) -> None:
        def judged(champion: Any) -> GateReport:
            reference = {"m": scores[champion.number]} if champion else None
            report = judge({"m": scores[number]}, gates, reference)
            promotion.record_judgement(store, "star", number, report, key="k", against=None)
            return report

        outcome[number] = promotion.promote_best(store, "star", number, judged)[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in scores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    best = max(scores, key=lambda number: scores[number])
    assert registry.aliases(store, "star")["champion"] == best
    assert set(outcome) == set(scores)
    assert not outcome[1].passed  # below the bound
    state = succession.state(store, "star")
    assert state is not None
    assert state.champion == best


def test_another_ones_intent_is_never_carried_on(store: Store, promoted: tuple[int, int, int]) -> None:
    """A lock that ran out: the other one began a move of its own meanwhile."""
    real = registry.set_model_tag

    def steal(store: Store, concept: str, key: str, value: str) -> None:
        if key == succession.INTENT:
            value = json.dumps({**json.loads(value), "id": "another"})
        real(store, concept, key, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "set_model_tag", steal)
        with pytest.raises(promotion.ChampionChanged, match="another promotion"):
            promotion.promote(store, "star", 3, reason="tried")
    assert registry.aliases(store, "star")["champion"] == 2
