"""Methods compared by their whole fidelity-preservation curves, from a table of cells.

The curve of a method on one concept and seed runs through all of its cells: every training step and every inference
scale is a point. Three figures come from it: the hypervolume against a fixed reference point, the damage at a matched
fidelity, and from both, over concepts, a paired test (`components.evaluation.significance`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from components.evaluation.cells import measured, methods_of
from components.evaluation.frontier import Point, damage_at, frontier, hypervolume
from components.evaluation.significance import paired_test

_RUN = ["method", "concept", "seed"]


@dataclass(frozen=True)
class Axes:
    """What is set against what: a fidelity (better high) and the damage to a preservation metric (better low).

    Attributes:
        fidelity: a metric that is better high.
        preservation: any preservation metric.
        worst: damage of the reference point from which hypervolumes are measured.
        least: fidelity of that point.
        most: the best fidelity that there is.
        untouched: the metric's value for an untouched model; the damage is the distance from it.
        better: which way the preservation metric is good. With `higher` the damage is `untouched` less the value, so
            a value better than an untouched model's is a negative damage.
    """

    fidelity: str
    preservation: str
    worst: float
    least: float = 0.0
    most: float = 1.0
    untouched: float = 0.0
    better: str = "lower"

    @property
    def name(self) -> str:
        return f"{self.preservation} against {self.fidelity}"

    def points(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The measured cells that have both values, with the columns `fidelity` and `damage`."""
        if not {self.fidelity, self.preservation} <= set(cells.columns):
            return cells.iloc[:0].assign(fidelity=np.empty(0), damage=np.empty(0))
        value = cells[self.preservation]
        damage = value - self.untouched if self.better == "lower" else self.untouched - value
        points = cells.assign(fidelity=cells[self.fidelity], damage=damage)
        finite = np.isfinite(points[["fidelity", "damage"]].to_numpy(dtype=np.float64)).all(axis=1)
        return measured(points.loc[finite])


def curves(cells: pd.DataFrame, axes: Axes) -> dict[tuple[str, str, int], list[Point]]:
    """(method, concept, seed) -> its points, in no order."""
    found: dict[tuple[str, str, int], list[Point]] = {}
    points = axes.points(cells)
    for method, concept, seed, fidelity, damage in zip(
        *(points[name].tolist() for name in (*_RUN, "fidelity", "damage")), strict=True
    ):
        found.setdefault((method, concept, int(seed)), []).append((fidelity, damage))
    return found


def frontiers(cells: pd.DataFrame, axes: Axes) -> pd.DataFrame:
    """Columns method, concept, seed, fidelity, damage: the unbeaten points of each curve, by rising fidelity."""
    rows = [(*run, *point) for run, points in curves(cells, axes).items() for point in frontier(points)]
    return pd.DataFrame(rows, columns=[*_RUN, "fidelity", "damage"])


def hypervolumes(cells: pd.DataFrame, axes: Axes) -> pd.DataFrame:
    """Columns method, concept, seed, hypervolume: 1 is a curve that reaches `most` without damage, 0 one that never
    leaves the reference point. Above 1 only where a metric is better than an untouched model's."""
    whole = (axes.most - axes.least) * axes.worst
    rows = [
        (*run, hypervolume(points, reference=(axes.least, axes.worst)) / whole)
        for run, points in curves(cells, axes).items()
    ]
    return pd.DataFrame(rows, columns=[*_RUN, "hypervolume"])


def common_fidelity(cells: pd.DataFrame, axes: Axes) -> dict[str, float]:
    """Concept -> the highest fidelity that every method reaches there with every seed; concepts that a method lacks
    are left out."""
    points = axes.points(cells)
    reached = points.groupby(["concept", "method", "seed"])["fidelity"].max()
    methods = len(set(points["method"]))
    result = {}
    for concept, part in reached.groupby(level="concept"):
        if len(set(part.index.get_level_values("method"))) == methods:
            result[str(concept)] = float(part.min())
    return result


def damage_at_fidelity(cells: pd.DataFrame, axes: Axes, level: float | dict[str, float] | None = None) -> pd.DataFrame:
    """Columns method, concept, seed, level, damage: the least damage at a matched fidelity, interpolated.

    Args:
        level: one fidelity for all concepts, or one for each; None: the highest that all methods share on a concept.

    `damage` is NaN where a curve does not reach the level.
    """
    levels = common_fidelity(cells, axes) if level is None else level
    rows = []
    for run, points in curves(cells, axes).items():
        wanted = levels.get(run[1]) if isinstance(levels, dict) else levels
        if wanted is None:
            continue
        damage = damage_at(points, wanted)
        rows.append((*run, wanted, damage if math.isfinite(damage) else math.nan))
    return pd.DataFrame(rows, columns=[*_RUN, "level", "damage"])


def compare(figures: pd.DataFrame, column: str, baseline: str, *, better: str) -> pd.DataFrame:
    """Every method against one, paired by concept, each concept the mean over the seeds that both have.

    Args:
        figures: columns method, concept, seed and `column`.
        better: `higher` or `lower`: which way `column` is good. Differences are turned so that positive is better.

    Returns:
        Columns method, concepts, difference, wins, effect, p_permutation, p_wilcoxon and p_holm (of `p_permutation`,
        over all methods compared here); see `paired_test`.
    """
    by_run = figures.dropna(subset=[column]).groupby(_RUN)[column].mean().unstack("method")
    sign = 1.0 if better == "higher" else -1.0
    rows = []
    for method in methods_of(figures):
        if method == baseline or method not in by_run or baseline not in by_run:
            continue
        pairs = by_run[[method, baseline]].dropna().groupby(level="concept").mean()
        test = paired_test(sign * (pairs[method] - pairs[baseline]).to_numpy(dtype=np.float64))
        rows.append({"method": method, **test.to_dict()})
    columns = ["method", "concepts", "difference", "wins", "effect", "p_permutation", "p_wilcoxon"]
    result = pd.DataFrame(rows, columns=columns)
    return result.assign(p_holm=holm(result["p_permutation"].tolist()))


def compare_at_shared_fidelity(cells: pd.DataFrame, axes: Axes, baseline: str) -> pd.DataFrame:
    """Every method against one by the damage at the highest fidelity that the two share on each concept.

    A level that all methods share would be that of the weakest.

    Returns:
        As `compare`, with `level`, the mean of the shared fidelities; a positive difference is less damage.
    """
    points = axes.points(cells)
    pairs, levels = [], {}
    for method in methods_of(points):
        if method == baseline:
            continue
        both = _of_common_runs(points[points["method"].isin([method, baseline])])
        shared = common_fidelity(both, axes)
        if shared:
            pairs.append(compare(damage_at_fidelity(both, axes, shared), "damage", baseline, better="lower"))
            levels[method] = float(np.mean(list(shared.values())))
    if not pairs:
        return compare(pd.DataFrame(columns=[*_RUN, "damage"]), "damage", baseline, better="lower").assign(level=[])
    result = pd.concat(pairs, ignore_index=True)
    return result.assign(p_holm=holm(result["p_permutation"].tolist()), level=result["method"].map(levels))


def _of_common_runs(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells on concepts and with seeds that every method in the table has."""
    having = cells.groupby(["concept", "seed"])["method"].transform("nunique")
    return cells[having == cells["method"].nunique()]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests; NaN stays NaN and does not count."""
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for place, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        corrected[index] = largest
    return corrected
