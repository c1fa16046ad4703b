"""The planner: pure decisions from two states, checked against what must hold whatever the states are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import planning
from components.planning import KEY, Decision, Failures, Inputs

STAGES: dict[str, dict[str, object]] = {
    "validation": {"version": 1, "concept": "star", "data": "d", "concepts": {"minimum_side": 64}},
    "extractor": {
        "version": 1,
        "concept": "star",
        "data": "d",
        "base": {"fingerprint": "b"},
        "seed": 0,
        "learning": {},
    },
    "evaluation": {"version": 1, "concept": "star", "data": "d", "prompts": "p", "evaluators": {"clip": "c"}},
}


@dataclass(frozen=True)
class Version:
    number: int
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        return self.tags.get("gate/status", "not judged")


def inputs(**changes: object) -> Inputs:
    stages = {
        stage: {**content, **{k: v for k, v in changes.items() if k in content}} for stage, content in STAGES.items()
    }
    return Inputs.of_stages("star", stages, {"fidelity/dino": {"minimum": 0.1}})


def made(number: int, wanted: Inputs, *aliases: str, status: str = "passed", **tags: str) -> Version:
    return Version(number, {**wanted.tags, "adapter/digest": f"a{number}", "gate/status": status, **tags}, aliases)


def decide(wanted: Inputs, *versions: Version, failed: int = 0) -> Decision:
    newest_first = sorted(versions, key=lambda version: -version.number)
    return planning.decide(wanted, newest_first, Failures(failed, "it diverged"), quarantine_after=3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"data": "e"}, "data"),
        ({"base": {"fingerprint": "c"}}, "base"),
        ({"version": 2}, "method"),
        ({"learning": {"eta": 2.0}}, "profile"),
        ({"seed": 1}, "profile"),
        ({"prompts": "q"}, "prompts"),
        ({"evaluators": {"clip": "d"}}, "evaluators"),
    ],
)
def test_a_changed_input_is_trained_again_and_named(change: dict[str, object], part: str) -> None:
    before, after = inputs(), inputs(**change)
    assert after.key != before.key
    assert after.differences(before.tags) == [part]
    decision = decide(after, made(1, before, "champion"))
    assert decision.action == "train"
    assert decision.reason == f"changed since version 1, the champion: {part}"


def test_a_changed_gate_is_judged_again() -> None:
    stages = {name: dict(content) for name, content in STAGES.items()}
    other = Inputs.of_stages("star", stages, {"fidelity/dino": {"minimum": 0.2}})
    assert other.differences(inputs().tags) == ["profile"]


def test_the_key_does_not_depend_on_order_and_belongs_to_one_concept() -> None:
    turned = {name: dict(reversed(content.items())) for name, content in reversed(STAGES.items())}
    gates = {"fidelity/dino": {"minimum": 0.1}}
    assert Inputs.of_stages("star", turned, gates).key == inputs().key
    assert Inputs.of_stages("circle", turned, gates).key != inputs().key
    assert list(inputs().tags)[-1] == KEY  # written last: a key without its parts is never seen


def test_settled_versions_are_reused() -> None:
    wanted = inputs()
    champion = decide(wanted, made(1, wanted, "champion"))
    assert (champion.action, champion.version) == ("reuse", 1)
    rolled = made(2, wanted, **{"promotion/rolled_back": "true"})
    assert decide(wanted, made(1, inputs(seed=1), "champion"), rolled).version == 2
    refused = made(2, wanted, status="refused", **{"gate/against": "a1", "gate/refused": "too weak"})
    decision = decide(wanted, made(1, inputs(seed=1), "champion"), refused)
    assert (decision.action, decision.version) == ("reuse", 2)
    assert "refused: too weak" in decision.reason


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (made(2, inputs()), "passed its gates and is not the champion"),
        (made(2, inputs(), status="refused", **{"gate/against": "a0"}), "refused against another champion"),
        (Version(2, inputs().tags), "never judged"),
        (made(2, inputs(), **{"integrity/broken": "a byte"}), "changed since version 1, the champion: profile"),
    ],
)
def test_an_interrupted_or_outdated_judgement_is_made_again(version: Version, reason: str) -> None:
    decision = decide(inputs(), made(1, inputs(seed=1), "champion"), version)
    assert decision.action == "train"
    assert reason in decision.reason


def test_failures_lead_into_quarantine_and_a_change_out_of_it() -> None:
    wanted = inputs()
    assert [decide(wanted, failed=count).action for count in (0, 2, 3, 9)] == [
        "train",
        "train",
        "quarantined",
        "quarantined",
    ]
    assert decide(wanted, failed=3).reason.endswith("it diverged")
    assert decide(wanted, made(1, wanted, "champion"), failed=9).action == "reuse"  # it works after all


def test_a_champion_without_data_is_retired() -> None:
    retired = planning.retirements(["star"], {"star": 1, "moon": 4})
    assert [(each.name, each.action, each.version) for each in retired] == [("moon", "retire", 4)]


STATUS = st.sampled_from(["passed", "refused", "not judged"])


@given(
    st.lists(st.tuples(st.sampled_from([0, 1]), STATUS, st.sampled_from(["", "a1", "a2"])), max_size=4),
    st.integers(0, 4),
    st.integers(0, 5),
)
def test_every_state_has_one_decision_and_doing_it_settles_it(
    history: list[tuple[int, str, str]], champion: int, failed: int
) -> None:
    wanted = inputs(seed=0)
    versions = [
        made(
            number,
            inputs(seed=seed),
            *(["champion"] if number == champion else []),
            status=status,
            **{"gate/against": against},
        )
        for number, (seed, status, against) in enumerate(history, 1)
    ]
    decision = decide(wanted, *versions, failed=failed)
    assert decision == decide(wanted, *versions, failed=failed)
    assert decision.reason
    if decision.action != "train":
        return
    before = [Version(each.number, each.tags) for each in versions]
    assert decide(wanted, *before, made(9, wanted, "champion"), failed=failed).action == "reuse"
