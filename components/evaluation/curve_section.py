"""The section of a report that compares methods by their curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from components.evaluation.cells import measured, methods_of
from components.evaluation.charts import Cloud, scatter_chart
from components.evaluation.curves import (
    Axes,
    compare,
    compare_at_shared_fidelity,
    damage_at_fidelity,
    hypervolumes,
)
from components.evaluation.document import Chart, Part, Section, Table
from components.evaluation.numbers import figure, label, spread

_TEST = ("difference", "effect", "p", "p (Holm)")
HOW_CURVES_ARE_READ = (
    "Every training step and every inference scale of a method is a point, and methods are compared by their best "
    "points. Hypervolume: the share of the plane up to the reference point that a curve dominates; mean over concepts "
    "± standard deviation over seeds. Shared fidelity: the highest that a method and the baseline both reach on a "
    "concept, with every seed. The tests pair concepts, each the mean over the seeds that both methods have: p by "
    "random signs of the differences (two-sided; with n concepts never below 2 / 2^n), effect the rank-biserial "
    "correlation, Holm's correction over the methods. Positive differences and effects are better than the baseline."
)


def frontier_section(cells: pd.DataFrame, axes: Axes, levels: Sequence[float], baseline: str) -> Section:
    """The curves of all methods in one plane, their figures, and the paired tests."""
    volumes = hypervolumes(cells, axes)
    if volumes.empty:
        return Section(_title(axes), "Nothing was measured.", [])
    by_level = {level: damage_at_fidelity(cells, axes, level) for level in levels}
    tests = _by_method(compare(volumes, "hypervolume", baseline, better="higher"))
    at_shared = _by_method(compare_at_shared_fidelity(cells, axes, baseline))
    head = ["method", "hypervolume", *(f"damage at {level:g}" for level in levels)]
    head += [f"hypervolume: wins against {baseline}", *_TEST]
    head += ["at the fidelity shared with it", "less damage there", *_TEST[1:]]
    rows = []
    for method in methods_of(volumes):
        row = [method, _over_seeds(volumes, method, "hypervolume")]
        row += [_reached(by_level[level], method) for level in levels]
        for found, first in ((tests, "wins"), (at_shared, "level")):
            if method not in found:
                row += [""] * 5
                continue
            test = found[method]
            wins = f"{100 * test['wins']:.0f} % of {test['concepts']:.0f}"
            row += [wins if first == "wins" else figure(test["level"])]
            row += [figure(test[name]) for name in ("difference", "effect", "p_permutation", "p_holm")]
        rows.append(row)
    text = (
        f"Across: {axes.fidelity}, better high. Up: damage to {axes.preservation}, better low. Reference point of the "
        f"hypervolume: fidelity {axes.least:g}, damage {axes.worst:g}."
    )
    points, methods = axes.points(cells), methods_of(measured(cells))
    parts: list[Part] = []
    for kind, own in points.groupby("kind"):  # apart: a style changes a picture as no instance does
        title = f"All methods, means over {kind} concepts and seeds"
        parts.append(Chart(title, curve_chart(own, axes, title=title, methods=methods), wide=True))
    parts.append(Table(head, rows))
    for concept, own in points.groupby("concept", sort=False):
        parts.append(Chart(str(concept), curve_chart(own, axes, title=str(concept), methods=methods)))
    return Section(_title(axes), text, parts)


def _by_method(tests: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {str(row["method"]): {name: float(row[name]) for name in map(str, tests) if name != "method"}
            for _, row in tests.iterrows()}  # fmt: skip


def _title(axes: Axes) -> str:
    return f"{label(axes.preservation)} against {label(axes.fidelity)}"


def _over_seeds(figures: pd.DataFrame, method: str, column: str) -> str:
    own = figures[figures["method"] == method].dropna(subset=[column])
    return spread(own.groupby("seed")[column].mean()) if len(own) else ""


def _reached(figures: pd.DataFrame, method: str) -> str:
    own = figures[figures["method"] == method]
    reached = own.dropna(subset=["damage"])
    if reached.empty:
        return "not reached"
    partial = "" if len(reached) == len(own) else f" ({len(reached)} of {len(own)})"
    return figure(float(reached["damage"].mean())) + partial


def curve_chart(cells: pd.DataFrame, axes: Axes, title: str = "", methods: Sequence[str] | None = None) -> Markup:
    """A path per method through its points, the mean over concepts and seeds at each step; scales apart, in one colour;
    single cells are faint.

    Args:
        methods: in the order of their colours, so that several charts share them; None: those of the cells.
    """
    points, clouds = axes.points(cells), []
    for number, method in enumerate(methods_of(measured(cells)) if methods is None else methods):
        own = points[points["method"] == method]
        clouds.append(Cloud("", *_columns(own), number, joined=False))
        means = own.groupby(["step", "scale"], as_index=False)[["fidelity", "damage"]].mean()
        trained = means[means["scale"] == 1].sort_values("step")
        clouds.append(Cloud(method, *_columns(trained), number))
        steps = sorted(set(means[means["scale"] != 1]["step"]))
        scaled = (means[means["step"] == step].sort_values("scale") for step in steps)
        clouds += [Cloud(method, *_columns(path), number) for path in scaled]
    return scatter_chart(title or axes.name, clouds, f"{label(axes.fidelity)} →", f"damage: {label(axes.preservation)}")


def _columns(points: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return points["fidelity"].to_numpy(dtype=np.float64), points["damage"].to_numpy(dtype=np.float64)
