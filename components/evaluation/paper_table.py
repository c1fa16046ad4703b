"""The table of the paper (arXiv 2603.07561, Tab. 1-3): a row per method, one point each, instances beside styles.

The point is the paper's: trained to the end of the budget, acting as trained. It is derived from the same cells as the
curves. The paper's own figures stand here too; they come from Stable Diffusion 3.5 Medium and DreamBenchPCC, so only
the order of the methods and the signs can be compared with those of another base and other concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from components.evaluation.cells import at_budget, methods_of


@dataclass(frozen=True)
class Column:
    """A column of the paper's table.

    Attributes:
        title: its heading.
        metric: the metric key.
        form: how a value is written.
        better: which way it is good.
    """

    title: str
    metric: str
    form: str
    better: str = "higher"


_PRESERVATION = (
    Column("ΔCLIP-T", "preservation/clip_t_delta", "{:+.2f}"),
    Column("ΔHPSv2.1", "preservation/hps_delta", "{:+.2f}"),
    Column("ΔPickScore", "preservation/pickscore_delta", "{:+.2f}"),
)
COLUMNS = {
    "instance": (
        *_PRESERVATION,
        Column("Seg-Cons", "preservation/seg_cons", "{:.2f}"),
        Column("CLIP-I", "fidelity/clip_i", "{:.3f}"),
        Column("DINO", "fidelity/dino", "{:.3f}"),
    ),
    "style": (*_PRESERVATION, Column("CSD", "fidelity/csd", "{:.3f}")),
}
"""Kind of concept -> the paper's columns."""
FURTHER = {
    "instance": (
        Column("DINO, subject", "fidelity/dino_masked", "{:.3f}"),
        Column("recognised", "fidelity/recognised_probability", "{:.3f}"),
        Column("other prompts: distance", "preservation/prior_distance", "{:.4f}", "lower"),
        Column("KL", "preservation/kl", "{:.1f}", "lower"),
    ),
    "style": (
        Column("recognised", "fidelity/recognised_probability", "{:.3f}"),
        Column("other prompts: distance", "preservation/prior_distance", "{:.4f}", "lower"),
        Column("KL", "preservation/kl", "{:.1f}", "lower"),
    ),
}
"""Kind -> columns that the paper does not have."""

_NAN = math.nan
PAPER = {
    "instance": pd.DataFrame(
        [
            ("DreamBooth", -4.81, -2.17, -3.90, 18.38, 0.63, 0.62),
            ("DreamBooth + EWC", -4.17, -2.20, -3.16, 26.37, 0.62, 0.61),
            ("Mix-of-Show", -2.71, -1.08, -2.63, 15.72, 0.72, 0.61),
            ("CIFC", -1.93, -1.62, -2.08, 13.23, 0.78, 0.65),
            ("DreamO (tuning-free)", _NAN, _NAN, _NAN, _NAN, 0.71, 0.67),
            ("UNO (tuning-free)", _NAN, _NAN, _NAN, _NAN, 0.69, 0.62),
            ("PureCC", -0.31, 0.10, -0.67, 69.37, 0.81, 0.73),
            ("L_CC alone", -4.52, -2.01, -2.95, 23.74, 0.65, 0.66),
            ("merged stages", -1.17, -0.34, -1.08, 54.37, 0.50, 0.41),
            ("λ = 1", -0.18, _NAN, _NAN, _NAN, 0.43, _NAN),
            ("λ = 3", -0.51, _NAN, _NAN, _NAN, 0.58, _NAN),
            ("λ = 5", -2.67, _NAN, _NAN, _NAN, 0.73, _NAN),
            ("η = 0.5", -1.32, _NAN, _NAN, _NAN, 0.55, _NAN),
            ("η = 1.5", -0.43, _NAN, _NAN, _NAN, 0.80, _NAN),
            ("η = 2", -0.76, _NAN, _NAN, _NAN, 0.67, _NAN),
        ],
        columns=["method", *(column.metric for column in COLUMNS["instance"])],
    ),
    "style": pd.DataFrame(
        [
            ("DreamBooth", -6.23, -2.08, -1.83, 0.57),
            ("DreamBooth + EWC", -7.90, -2.04, -1.57, 0.60),
            ("Mix-of-Show", -4.93, -1.63, -1.73, 0.62),
            ("CIFC", -4.70, -1.21, -1.25, 0.64),
            ("DreamO (tuning-free)", _NAN, _NAN, _NAN, 0.65),
            ("UNO (tuning-free)", _NAN, _NAN, _NAN, 0.34),
            ("PureCC", -0.26, -0.92, -0.59, 0.63),
            ("λ = 1", -0.67, _NAN, _NAN, 0.26),
            ("λ = 3", -0.93, _NAN, _NAN, 0.61),
            ("λ = 5", -4.21, _NAN, _NAN, 0.42),
            ("η = 0.5", -2.02, _NAN, _NAN, 0.49),
            ("η = 1.5", -0.26, _NAN, _NAN, 0.60),
            ("η = 2", -0.41, _NAN, _NAN, 0.39),
        ],
        columns=["method", *(column.metric for column in COLUMNS["style"])],
    ),
}
"""Kind -> the paper's own figures (Tab. 1-3, 6), columns `method` and metric keys; NaN where it gives none."""


def paper_table(cells: pd.DataFrame, kind: str, columns: tuple[Column, ...] | None = None) -> pd.DataFrame:
    """Mean and standard deviation over seeds of the mean over concepts, at the end of the budget.

    Returns:
        One row per method, with `method`, `concepts`, `seeds`, and for each column of the table `<metric>` and
        `<metric>/std` (NaN with one seed). A metric that was not measured has no column. Concepts that a method lacks
        are not made up for: `concepts` says how many its means go over.
    """
    columns = COLUMNS[kind] + FURTHER[kind] if columns is None else columns
    chosen = at_budget(cells)
    chosen = chosen[chosen["kind"] == kind]
    metrics = [column.metric for column in columns if column.metric in chosen and chosen[column.metric].notna().any()]
    rows = []
    for method in methods_of(chosen):
        own = chosen[chosen["method"] == method]
        by_seed = own.groupby("seed")[metrics].mean()
        row: dict[str, float | str] = {
            "method": method,
            "concepts": own["concept"].nunique(),
            "seeds": own["seed"].nunique(),
        }
        for metric in metrics:
            row[metric] = float(by_seed[metric].mean())
            row[f"{metric}/std"] = float(by_seed[metric].std(ddof=1)) if len(by_seed) > 1 else _NAN
        rows.append(row)
    names = ["method", "concepts", "seeds", *(name for metric in metrics for name in (metric, f"{metric}/std"))]
    return pd.DataFrame(rows, columns=names)


def written(table: pd.DataFrame, columns: tuple[Column, ...]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table as text: "mean ± std"; empty where nothing was measured."""
    shown = [column for column in columns if column.metric in table]
    counts = [name for name in ("concepts", "seeds") if name in table]
    arrows = {"higher": "↑", "lower": "↓"}
    rows = []
    for _, row in table.iterrows():
        texts = [str(row["method"]), *(str(row[name]) for name in counts)]
        for column in shown:
            value, spread = float(row[column.metric]), float(row.get(f"{column.metric}/std", _NAN))
            text = "" if math.isnan(value) else column.form.format(value)
            if text and not math.isnan(spread):
                text += f" ± {column.form.format(spread).removeprefix('+')}"
            texts.append(text.replace("-", "\N{MINUS SIGN}") if text[:1] == "-" else text)
        rows.append(texts)
    return ["method", *counts, *(f"{column.title} {arrows[column.better]}" for column in shown)], rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
