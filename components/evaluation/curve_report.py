"""Table and plot of fidelity-preservation curves, from the cells that `flows/curves.py` measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from components.evaluation.cells import methods_of
from components.evaluation.curve_section import frontier_section
from components.evaluation.curves import Axes
from components.evaluation.document import Table
from components.evaluation.paper_table import markdown
from components.files import atomic_file


def table(cells: pd.DataFrame, axes: Axes, levels: Sequence[float], baseline: str) -> str:
    """Markdown: per method the hypervolume, the damage at matched fidelities, and the paired test over concepts."""
    parts = frontier_section(cells, axes, levels, baseline).parts
    return "\n\n".join(markdown(list(part.head), [list(row) for row in part.rows]) for part in parts
                       if isinstance(part, Table))  # fmt: skip


def plot(cells: pd.DataFrame, all_axes: Sequence[Axes], target: Path) -> None:
    """One panel per pair of axes; a line per method through the means over concepts and seeds at each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(all_axes), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(all_axes)))
    for panel, axes in zip(panels, all_axes, strict=True):
        points = axes.points(cells)
        for method in methods_of(points):
            own = points[points["method"] == method]
            means = own.groupby(["step", "scale"])[["fidelity", "damage"]].mean()
            (line,) = panel.plot(means["fidelity"], means["damage"], marker="o", label=method)
            panel.scatter(own["fidelity"], own["damage"], s=6, alpha=0.3, color=line.get_color())
        panel.set(xlabel=f"{axes.fidelity}  (more is better)", ylabel=f"{axes.preservation}  (less damage is better)")
        panel.grid(alpha=0.3)
    panels[0].legend()
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
