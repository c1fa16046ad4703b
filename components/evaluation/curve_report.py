"""Table and plot of fidelity-preservation curves, from the rows that `flows/curves.py` measures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.evaluation.frontier import Point, damage_at, hypervolume
from components.files import atomic_file

Row = Mapping[str, str]
Curves = dict[str, dict[tuple[str, str], list[Point]]]
"""Variant -> (concept, seed) -> points."""


@dataclass(frozen=True)
class Axes:
    """What is set against what: a fidelity (better high) and a damage (better low).

    Attributes:
        worst: damage of the reference point from which hypervolumes are measured.
        least: fidelity of that point: the original model's.
    """

    fidelity: str
    damage: str
    worst: float
    least: float = 0.0


def read_curves(rows: Sequence[Row], axes: Axes) -> Curves:
    """The points of every curve; rows that lack a value are left out."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get(axes.fidelity) and row.get(axes.damage):
            point = (float(row[axes.fidelity]), float(row[axes.damage]))
            curves[row["variant"]][row["concept"], row["seed"]].append(point)
    return {variant: dict(cells) for variant, cells in curves.items()}


def table(curves: Curves, axes: Axes, levels: Sequence[float], baseline: str) -> str:
    """Markdown: per variant the damage at matched fidelity, and the hypervolume, mean over concepts and seeds.

    A level's cell says over how many of the curves the mean goes, where not all of them reach that fidelity; the last
    column counts the concepts and seeds in which the variant's hypervolume is above the baseline's.
    """
    head = ["variant", *(f"{axes.damage.split('/')[-1]} at {level:.2f}" for level in levels), "hypervolume", "wins"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    volumes = {
        variant: {
            cell: hypervolume(points, reference=(axes.least, axes.worst)) / ((1 - axes.least) * axes.worst)
            for cell, points in cells.items()
        }
        for variant, cells in curves.items()
    }
    for variant, cells in curves.items():
        row = [variant]
        for level in levels:
            reached = [value for points in cells.values() if math.isfinite(value := damage_at(points, level))]
            partial = "" if len(reached) == len(cells) else f" ({len(reached)} of {len(cells)})"
            row.append(f"{np.mean(reached):.4f}{partial}" if reached else "not reached")
        own, base = volumes[variant], volumes[baseline]
        row.append(f"{np.mean(list(own.values())):.3f} ± {np.std(list(own.values())):.3f}")
        shared = own.keys() & base.keys()
        row.append("" if variant == baseline else f"{sum(own[cell] > base[cell] for cell in shared)} of {len(shared)}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], all_axes: Sequence[Axes], target: Path) -> None:
    """One panel per pair of axes; a line per variant through the means over concepts and seeds at each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(all_axes), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(all_axes)))
    for panel, axes in zip(panels, all_axes, strict=True):
        means: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.get(axes.fidelity) and row.get(axes.damage):
                point = (float(row[axes.fidelity]), float(row[axes.damage]))
                means[row["variant"]][int(row["step"])].append(point)
        for variant, steps in means.items():
            centres = np.array([np.mean(points, axis=0) for _, points in sorted(steps.items())])
            (line,) = panel.plot(centres[:, 0], centres[:, 1], marker="o", label=variant)
            cloud = np.array([point for points in steps.values() for point in points])
            panel.scatter(cloud[:, 0], cloud[:, 1], s=6, alpha=0.3, color=line.get_color())
        panel.set(xlabel=f"{axes.fidelity}  (more is better)", ylabel=f"{axes.damage}  (less is better)")
        panel.grid(alpha=0.3)
    panels[0].legend()
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
