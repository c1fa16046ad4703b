"""Which concepts are checked together, and what the check says, against figures worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.forgetting import prior_preservation
from components.evaluation.together import Presence, TogetherResult, groups_of

WORKED = TogetherResult(
    (
        Presence(("a", "b"), "a", alone=0.9, together=0.7, bleed=0.0, joint=0.6, joint_untouched=0.5),
        Presence(("a", "b"), "b", alone=0.5, together=0.6, bleed=0.3, joint=0.2, joint_untouched=0.4),
        Presence(("a", "s"), "a", alone=0.9, together=0.9, bleed=0.1),
    ),
    prior_distance=0.02,
    how="merge",
)


def test_the_worked_example() -> None:
    assert WORKED.metrics == {
        "together/loss_mean": pytest.approx((0.2 - 0.1 + 0.0) / 3),
        "together/loss_max": pytest.approx(0.2),
        "together/bleed_mean": pytest.approx((0.0 + 0.3 + 0.1) / 3),
        "together/bleed_max": pytest.approx(0.3),
        "together/prior_distance": 0.02,
        "together/joint_gain_mean": pytest.approx((0.1 - 0.2) / 2),
        "together/joint_gain_min": pytest.approx(-0.2),
    }


def test_a_bound_refuses_what_is_above_it_and_what_is_no_number() -> None:
    assert WORKED.refusal(maximum_loss=None, maximum_bleed=None) == ""
    assert WORKED.refusal(maximum_loss=0.2 + 1e-9, maximum_bleed=0.3) == ""
    said = WORKED.refusal(maximum_loss=0.1, maximum_bleed=0.2)
    assert said == "together/loss_max = 0.2, needs <= 0.1; together/bleed_max = 0.3, needs <= 0.2"
    unknown = TogetherResult((Presence(("a", "b"), "a", math.nan, 0.5, 0.0),), 0.0, "merge")
    assert "loss_max = nan" in unknown.refusal(maximum_loss=1.0, maximum_bleed=None)


def test_a_concept_on_its_own_has_nothing_to_be_refused_for() -> None:
    assert TogetherResult((), 0.0, "merge").refusal(maximum_loss=0.0, maximum_bleed=0.0) == ""


@given(st.integers(0, 9), st.integers(0, 40))
def test_every_concept_is_in_about_as_many_pairs_as_any_other(count: int, maximum: int) -> None:
    names = [f"c{number}" for number in range(count)]
    groups = groups_of(names, maximum)
    pairs = [group for group in groups if len(group) == 2]
    every = set(itertools.combinations(names, 2))
    assert len(pairs) == len(set(pairs)) == min(maximum, len(every))
    assert set(pairs) <= every
    assert [group for group in groups if len(group) > 2] == ([tuple(names)] if count > 2 else [])
    seen = Counter(itertools.chain.from_iterable(pairs))
    assert not names or max(seen[name] for name in names) - min(seen[name] for name in names) <= 2


def test_prior_preservation_is_the_mean_over_the_prompt_sets_that_have_a_metric() -> None:
    row = {
        "a": {"preservation/prior_distance": 0.1, "preservation/prior_distance_floor": 9.0, "fidelity/dino": 1.0},
        "b": {"preservation/prior_distance": 0.3, "preservation/prior_accuracy": 0.5},
    }
    assert prior_preservation(row) == {
        "preservation/prior_accuracy": 0.5,
        "preservation/prior_distance": pytest.approx(0.2),
    }
