from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.settings import Gate
from components.tracking.gates import judge

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


@pytest.mark.parametrize(
    ("gate", "value", "champion", "passed"),
    [
        (Gate(minimum=0.5), 0.5, None, True),
        (Gate(minimum=0.5), 0.499, None, False),
        (Gate(maximum=0.5), 0.5, None, True),
        (Gate(maximum=0.5), 0.501, None, False),
        (Gate(minimum=0.0, maximum=1.0), 1.5, None, False),
        (Gate(not_worse_by=0.25), 0.5, 0.75, True),
        (Gate(not_worse_by=0.25), 0.49, 0.75, False),
        (Gate(not_worse_by=0.25, better="lower"), 1.0, 0.75, True),
        (Gate(not_worse_by=0.25, better="lower"), 1.01, 0.75, False),
        (Gate(not_worse_by=0.0), -5.0, None, True),  # no champion: nothing to be worse than
        (Gate(not_worse_by=0.0), -5.0, math.nan, True),  # a champion that never had the metric
        (Gate(minimum=0.0, not_worse_by=0.1), 0.5, 0.7, False),
        (Gate(minimum=0.0, not_worse_by=0.1), -0.05, 0.0, False),
        (Gate(), 3.0, None, True),
        (Gate(), math.nan, None, False),
        (Gate(minimum=0.0), math.inf, None, False),
        (Gate(maximum=0.0), -math.inf, None, False),
    ],
)
def test_bounds(gate: Gate, value: float, champion: float | None, passed: bool) -> None:
    report = judge({"m": value}, {"m": gate}, None if champion is None else {"m": champion})
    assert report.passed is passed
    assert report.results[0].passed is passed


def test_a_missing_metric_fails_and_the_name_that_was_meant_is_said() -> None:
    report = judge({"fidelity/clip_i": 0.9}, {"fidelity/clip-i": Gate()})
    assert not report.passed
    assert "was not measured (did you mean fidelity/clip_i?)" in report.refusal
    other = judge({"preservation/prior_pickscore_delta": 0.9}, {"preservation/prior_accuracy_delta": Gate()})
    assert "was not measured, needs" in other.refusal  # another metric, whose evaluator could not judge


def test_the_refusal_names_each_failed_gate_with_value_and_bound() -> None:
    gates = {"a": Gate(minimum=1), "b": Gate(maximum=2), "c": Gate(not_worse_by=0.5), "d": Gate(minimum=0)}
    report = judge({"a": 0.25, "b": 3.5, "c": 1.0, "d": 1.0}, gates, {"c": 4.0})
    assert [result.metric for result in report.failures] == ["a", "b", "c"]
    assert report.refusal == ("a = 0.25, needs >= 1; b = 3.5, needs <= 2; c = 1, needs >= 3.5 (champion 4 - 0.5)")


def test_json_holds_no_number_that_json_has_no_word_for() -> None:
    row = judge({"m": math.nan}, {"m": Gate(minimum=1.0)}, {"m": math.inf}).to_json()[0]
    assert (row["value"], row["champion"], row["passed"]) == (None, None, False)


@given(value=NUMBERS, minimum=NUMBERS, step=st.floats(min_value=1e-3, max_value=10))
def test_a_better_value_never_turns_a_pass_into_a_failure(value: float, minimum: float, step: float) -> None:
    gates = {"m": Gate(minimum=minimum, not_worse_by=0.5)}
    champion = {"m": minimum}
    if judge({"m": value}, gates, champion).passed:
        assert judge({"m": value + step}, gates, champion).passed


@given(
    values=st.dictionaries(st.sampled_from("abcd"), st.floats()),
    minima=st.dictionaries(st.sampled_from("abcd"), NUMBERS, min_size=1),
)
def test_passes_exactly_if_every_gated_metric_is_there_finite_and_inside(
    values: dict[str, float], minima: dict[str, float]
) -> None:
    report = judge(values, {name: Gate(minimum=minimum) for name, minimum in minima.items()})
    expected = all(math.isfinite(values.get(name, math.nan)) and values[name] >= low for name, low in minima.items())
    assert report.passed is expected
    assert bool(report.refusal) is not expected
