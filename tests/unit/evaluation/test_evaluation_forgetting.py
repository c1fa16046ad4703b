"""ACC, backward transfer and forgetting against matrices worked out by hand."""

from __future__ import annotations

import csv
import io
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.forgetting import Forgetting
from components.evaluation.sequence_report import heat_map

# after a: 0.9 on a; after b: a falls to 0.7, b is learned at 0.8; after c: a recovers to 0.75, b falls to 0.5.
WORKED = Forgetting.of_rows(("a", "b", "c"), [[0.9, 0.1, 0.2], [0.7, 0.8, 0.1], [0.75, 0.5, 0.85]])


def test_the_worked_example() -> None:
    assert WORKED.accuracy == pytest.approx((0.75 + 0.5 + 0.85) / 3)
    assert WORKED.backward_transfer == pytest.approx(((0.75 - 0.9) + (0.5 - 0.8)) / 2)
    assert WORKED.per_concept == {"a": pytest.approx(0.9 - 0.75), "b": pytest.approx(0.8 - 0.5)}
    assert WORKED.worst == pytest.approx(0.3)
    assert WORKED.mean == pytest.approx((0.15 + 0.3) / 2)
    assert WORKED.refusal(0.3 + 1e-9) == WORKED.refusal(None) == ""
    assert WORKED.refusal(0.2).startswith("forgetting of b = 0.3")


def test_forgetting_is_against_the_best_not_the_first_value() -> None:
    risen = Forgetting.of_rows(("a", "b", "c"), [[0.5, 0, 0], [0.9, 0.6, 0], [0.6, 0.6, 0.7]])
    assert risen.per_concept["a"] == pytest.approx(0.9 - 0.6)
    assert risen.backward_transfer == pytest.approx(((0.6 - 0.5) + 0.0) / 2)  # better than when it was learned


def test_one_concept_has_nothing_to_forget_and_none_has_no_accuracy() -> None:
    one = Forgetting.of_rows(("a",), [[0.4]])
    assert (one.accuracy, one.backward_transfer, one.worst, one.mean) == (0.4, 0.0, 0.0, 0.0)
    assert math.isnan(Forgetting.of_rows((), []).accuracy)


def test_a_value_that_is_missing_passes_no_gate() -> None:
    for i, j in ((1, 0), (0, 0)):
        rows = [[0.9, 0.1], [0.9, 0.8]]
        rows[i][j] = math.nan
        assert "nan" in Forgetting.of_rows(("a", "b"), rows).refusal(1.0)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="values for 2 concepts"):
        Forgetting.of_rows(("a", "b"), [[1.0, 2.0]])


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n * n, max_size=n * n)))
def test_what_holds_for_every_matrix(values: list[float]) -> None:
    count = math.isqrt(len(values))
    found = Forgetting.of_rows([str(j) for j in range(count)], np.array(values).reshape(count, count).tolist())
    # F_j >= R[j, j] - R[T-1, j], for the maximum includes l = j; so the mean of F is at least minus BWT
    assert found.mean >= -found.backward_transfer - 1e-12
    assert found.mean <= found.worst + 1e-12
    shifted = Forgetting(found.names, found.matrix_TT + 0.5)
    assert shifted.accuracy == pytest.approx(found.accuracy + 0.5)
    assert shifted.worst == pytest.approx(found.worst)
    constant = Forgetting(found.names, np.tile(found.matrix_TT[0], (count, 1)))
    assert (constant.worst, constant.backward_transfer) == (0.0, 0.0)


def test_the_csv_reads_back_and_the_heat_map_shows_each_value() -> None:
    head, *rows = csv.reader(io.StringIO(WORKED.to_csv()))
    assert head == ["after", "a", "b", "c"]
    assert np.array([[float(value) for value in row[1:]] for row in rows]) == pytest.approx(WORKED.matrix_TT)
    picture = ET.fromstring(heat_map(WORKED))
    cells = [node for node in picture if node.tag == "rect"]
    assert len(cells) == 9
    assert [node.get("class") for node in cells].count("own") == 3
    shown = [node.text for node in picture if node.get("class") in ("dark", "light")]
    assert shown == [f"{value:.3f}" for value in WORKED.matrix_TT.ravel()]


def test_a_name_cannot_become_markup() -> None:
    found = Forgetting.of_rows(("<script>",), [[1.0]])
    assert "<script>" not in heat_map(found)
