"""Curves of methods against closed forms, on tables of cells."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.errors import InvalidInput
from components.evaluation.cells import at_budget, failed, measured, read_cells, write_cells
from components.evaluation.curves import (
    Axes,
    common_fidelity,
    compare,
    compare_at_shared_fidelity,
    damage_at_fidelity,
    frontiers,
    holm,
    hypervolumes,
)
from components.evaluation.significance import paired_test

AXES = Axes("fidelity/dino", "preservation/prior_distance", worst=0.5)
quick = settings(max_examples=25, deadline=None)


def cell(method: str, concept: str, seed: int, step: int, fidelity: float, damage: float, scale: float = 1.0) -> dict:
    return {"method": method, "concept": concept, "kind": "instance", "seed": seed, "step": step, "scale": scale,
            "fidelity/dino": fidelity, "preservation/prior_distance": damage}  # fmt: skip


def table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


TWO_STEPS = table(cell("a", "x", 0, 10, 0.4, 0.1), cell("a", "x", 0, 20, 0.8, 0.3))


def test_hypervolume_is_the_area_of_two_boxes() -> None:
    # below (0.4, 0.1): 0.4 x 0.4; beyond it up to 0.8: 0.4 x 0.2; of 1 x 0.5 in all
    assert hypervolumes(TWO_STEPS, AXES)["hypervolume"].tolist() == pytest.approx([(0.16 + 0.08) / 0.5])


def test_an_inference_scale_is_a_point_like_any_other() -> None:
    scaled = pd.concat([TWO_STEPS, table(cell("a", "x", 0, 20, 0.6, 0.15, scale=0.5))])
    assert frontiers(scaled, AXES)[["fidelity", "damage"]].to_numpy().tolist() == [[0.4, 0.1], [0.6, 0.15], [0.8, 0.3]]
    assert hypervolumes(scaled, AXES)["hypervolume"].tolist() == pytest.approx([(0.16 + 0.07 + 0.04) / 0.5])
    assert damage_at_fidelity(scaled, AXES, 0.5)["damage"].tolist() == pytest.approx([0.125])
    assert at_budget(scaled)["step"].tolist() == [20]
    assert at_budget(scaled)["scale"].tolist() == [1.0]


def test_damage_may_be_the_distance_from_an_untouched_models_value() -> None:
    cells = TWO_STEPS.assign(**{"preservation/seg_cons": [90.0, 70.0], "preservation/clip_t_delta": [0.5, -2.0]})
    masks = Axes("fidelity/dino", "preservation/seg_cons", worst=50.0, untouched=100.0, better="higher")
    assert masks.points(cells)["damage"].tolist() == [10, 30]
    texts = Axes("fidelity/dino", "preservation/clip_t_delta", worst=5.0, better="higher")
    assert texts.points(cells)["damage"].tolist() == [-0.5, 2.0]
    assert hypervolumes(cells, texts)["hypervolume"].tolist() == pytest.approx([(0.4 * 5.5 + 0.4 * 3.0) / 5])


def test_matched_fidelity_is_the_highest_that_all_methods_share_on_a_concept() -> None:
    cells = table(
        cell("a", "x", 0, 10, 0.4, 0.1), cell("a", "x", 0, 20, 0.8, 0.3),
        cell("b", "x", 0, 10, 0.2, 0.0), cell("b", "x", 0, 20, 0.6, 0.4),
        cell("a", "y", 0, 10, 0.9, 0.2),
    )  # fmt: skip
    assert common_fidelity(cells, AXES) == {"x": 0.6}, "a concept that b lacks is left out"
    matched = damage_at_fidelity(cells, AXES).set_index("method")["damage"]
    assert matched.to_dict() == pytest.approx({"a": 0.2, "b": 0.4})
    fixed = damage_at_fidelity(cells, AXES, 0.7).set_index(["method", "concept"])["damage"]
    assert fixed["a", "x"] == pytest.approx(0.25)
    assert math.isnan(fixed["b", "x"]), "not reached"


def test_a_pair_is_compared_where_both_get_to_whatever_a_third_one_does() -> None:
    rows = []
    for concept, worse in (("x", 0.1), ("y", 0.2)):
        rows += [cell("base", concept, 0, 10, 0.2, 0.0), cell("base", concept, 0, 20, 0.8, 0.3)]
        rows += [cell("other", concept, 0, 10, 0.5, 0.15 + worse), cell("weak", concept, 0, 10, 0.1, 0.4)]
    found = compare_at_shared_fidelity(table(*rows), AXES, "base").set_index("method")
    assert found.loc["other", "level"] == pytest.approx(0.5)
    assert found.loc["other", "difference"] == pytest.approx(-0.15), "the base has 0.15 at 0.5"
    assert found.loc["weak", "level"] == pytest.approx(0.1)
    assert compare_at_shared_fidelity(table(*rows[:2]), AXES, "base").empty


_VALUE = st.integers(0, 20).map(lambda value: value / 20)
_CELLS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 1), _VALUE, _VALUE),
                  min_size=1, max_size=12)  # fmt: skip


def many(rows: list[tuple]) -> pd.DataFrame:
    return table(*(cell(m, c, s, step, f, d) for step, (m, c, s, f, d) in enumerate(rows)))


@quick
@given(_CELLS, st.randoms())
def test_the_order_of_cells_is_without_effect(rows: list[tuple], random) -> None:
    cells = many(rows)
    order = list(range(len(cells)))
    random.shuffle(order)
    keys = ["method", "concept", "seed"]
    for figures in (hypervolumes, damage_at_fidelity):
        first, second = (figures(part, AXES).sort_values(keys) for part in (cells, cells.iloc[order]))
        pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))


@quick
@given(_CELLS, _VALUE, _VALUE)
def test_a_further_point_never_lowers_a_hypervolume_nor_what_is_reached(rows, fidelity, damage) -> None:
    cells = many(rows)
    method, concept, seed = rows[0][:3]
    more = pd.concat([cells, table(cell(method, concept, seed, 99, fidelity, damage, scale=0.5))])
    keys = ["method", "concept", "seed"]
    before, after = (hypervolumes(part, AXES).set_index(keys)["hypervolume"] for part in (cells, more))
    assert (after - before >= -1e-12).all()
    assert ((after >= 0) & (after <= 1 + 1e-12)).all()
    for level in (0.25, 0.6):
        old, new = (damage_at_fidelity(part, AXES, level).set_index(keys)["damage"] for part in (cells, more))
        assert new[old.notna()].notna().all()


@quick
@given(_CELLS)
def test_more_damage_everywhere_is_a_smaller_hypervolume(rows) -> None:
    cells = many(rows)
    worse = cells.assign(**{"preservation/prior_distance": cells["preservation/prior_distance"] + 0.1})
    first, second = (hypervolumes(part, AXES)["hypervolume"] for part in (cells, worse))
    assert (second <= first + 1e-12).all()


@quick
@given(st.lists(st.integers(-9, 9).map(lambda value: value / 4), min_size=2, max_size=6))
def test_the_paired_test_is_the_exact_one(differences: list[float]) -> None:
    values = np.array(differences)
    result = paired_test(values)
    assert result.difference == pytest.approx(values.mean())
    assert -1 <= result.effect <= 1
    mirrored = paired_test(-values)
    assert mirrored.effect == pytest.approx(-result.effect)
    assert mirrored.wins == pytest.approx(1 - result.wins)
    if np.count_nonzero(values) < 2:
        assert math.isnan(result.p_permutation)
        return
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    means = (signs * values).mean(axis=1)
    tail = min((means >= values.mean() - 1e-9).mean(), (means <= values.mean() + 1e-9).mean())
    assert result.p_permutation == pytest.approx(min(1.0, 2 * tail))
    ranks = stats.rankdata(np.abs(values[values != 0]))
    positive = ranks[values[values != 0] > 0].sum()
    assert result.effect == pytest.approx((2 * positive - ranks.sum()) / ranks.sum())


def test_methods_are_paired_by_concept_over_the_seeds_that_both_have() -> None:
    rows = []
    for number, concept in enumerate("uvwxyz"):
        cells = (("base", 0, 0.5), ("base", 1, 0.6), ("base", 2, 9.0), ("good", 0, 0.4), ("good", 1, 0.5),
                 ("same", 1, 0.6), ("same", 3, 0.0))  # fmt: skip
        rows += [{"method": m, "concept": concept, "seed": seed, "damage": d + number} for m, seed, d in cells]
    found = compare(pd.DataFrame(rows), "damage", "base", better="lower").set_index("method")
    assert found.loc["good", "difference"] == pytest.approx(0.1), "positive is better"
    assert found.loc["good", "wins"] == 1
    assert found.loc["good", "effect"] == 1
    assert found.loc["good", "p_permutation"] == pytest.approx(2 / 64)
    assert found.loc["good", "p_wilcoxon"] == pytest.approx(2 / 64)
    assert found.loc["same", "difference"] == pytest.approx(0, abs=1e-12)
    assert found.loc["good", "concepts"] == 6
    assert "base" not in found.index


def test_a_seed_that_only_one_of_two_has_sets_no_shared_fidelity() -> None:
    rows = [cell("base", "x", 0, 10, 0.6, 0.2), cell("other", "x", 0, 10, 0.5, 0.1), cell("base", "y", 0, 10, 0.4, 0.3)]
    rows += [cell("other", "y", 0, 10, 0.4, 0.2), cell("base", "x", 1, 10, 0.1, 0.0), cell("base", "z", 0, 10, 0.2, 0)]
    found = compare_at_shared_fidelity(table(*rows), AXES, "base").set_index("method").loc["other"]
    assert found["level"] == pytest.approx((0.5 + 0.4) / 2)
    assert found["difference"] == pytest.approx(0.1)
    assert found["concepts"] == 2


def test_holm_is_the_textbook_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([]) == []


def test_tables_survive_the_disk_and_failed_cells_do_not_count(tmp_path: Path) -> None:
    cells = TWO_STEPS.assign(error=[None, "out of memory"])
    write_cells(cells, tmp_path / "cells.csv")
    again = read_cells(tmp_path / "cells.csv")
    assert len(again) == 2
    assert measured(again)["step"].tolist() == [10]
    assert failed(again)["error"].tolist() == ["out of memory"]
    assert hypervolumes(again, AXES)["hypervolume"].tolist() == pytest.approx([0.16 / 0.5])
    old = TWO_STEPS.drop(columns=["kind", "scale"]).rename(columns={"method": "variant"})
    old.to_csv(tmp_path / "old.csv", index=False)
    assert read_cells(tmp_path / "old.csv")[["method", "kind", "scale"]].iloc[0].tolist() == ["a", "instance", 1.0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda cells: cells.drop(columns="seed"), "seed: is missing"),
        (lambda cells: cells.assign(step="ten"), "step: is not a number"),
        (lambda cells: cells.assign(kind="person"), "kind: is one of"),
        (lambda cells: pd.concat([cells, cells]), "2 cells stand there twice"),
        (lambda cells: cells.assign(concept=["x", None]), "concept: row 3 has none"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, change, problem: str) -> None:
    change(TWO_STEPS).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(InvalidInput, match=problem):
        read_cells(tmp_path / "cells.csv")
    with pytest.raises(InvalidInput, match="no table"):
        read_cells(tmp_path / "none.csv")
