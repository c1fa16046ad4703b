"""The sections of a benchmark's report, each a pure function of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from components.evaluation.cells import COSTS, ERROR, KEYS, at_budget, failed, methods_of
from components.evaluation.charts import Cloud, Series, line_chart, scatter_chart
from components.evaluation.curves import Axes
from components.evaluation.document import Chart, Part, Section, Sheet, Table
from components.evaluation.lambda_study import (
    COSINE,
    LAMBDA,
    PROMPT_COSINE,
    PROMPT_LAMBDA,
    correlation_with,
    lambda_course,
)
from components.evaluation.leakage import LEAKAGE, leakage_table
from components.evaluation.numbers import figure, label, spread
from components.evaluation.paper_table import COLUMNS, FURTHER, PAPER, paper_table, written

_KINDS = {"instance": "Instance concepts", "style": "Style concepts"}
_COST_NAMES = dict(zip(COSTS, ("seconds a step", "seconds in all", "peak memory, MiB", "adapter, MiB"), strict=True))


def single_points(cells: pd.DataFrame) -> Section:
    """The paper's table, instances and styles, with its own figures to fold out."""
    parts: list[Part] = []
    for kind, title in _KINDS.items():
        columns = COLUMNS[kind] + FURTHER[kind]
        table = paper_table(cells, kind)
        if table.empty:
            continue
        parts.append(Table(*written(table, columns), title=title))
        note = "Stable Diffusion 3.5 Medium on DreamBenchPCC: only signs and order can be compared."
        parts.append(Table(*written(PAPER[kind], COLUMNS[kind]), title=f"{title} in the paper", text=note, folded=True))
    return Section(
        "Single points",
        "Each method at the end of its budget, acting as trained: the mean over concepts, and the standard deviation "
        "of that mean over seeds. One point proves nothing by itself: a method stopped earlier preserves more.",
        parts,
    )


def lambda_section(
    history: pd.DataFrame, cells: pd.DataFrame, axes: Axes, categories: pd.DataFrame | None = None
) -> Section:
    """lambda* over the steps for every concept, on the prompts, its statistics, and what it goes along with."""
    course = lambda_course(history)
    if course.empty:
        return Section("λ*", "No run logged it.", [])
    names = [str(name) for name in course if name not in ("method", "concept", "seed")]
    rows = [
        [f"{row['method']}, {row['concept']}, seed {row['seed']}", *(figure(float(row[name])) for name in names)]
        for _, row in course.iterrows()
    ]
    parts: list[Part] = []
    methods = methods_of(course)
    for concept, part in history[history["method"].isin(methods)].groupby("concept", sort=False):
        for key, title in ((LAMBDA, "λ*"), (COSINE, "guidance cosine")):
            if key not in part:
                continue
            table = part.pivot_table(index="step", columns="method", values=key, aggfunc="mean")
            series = [
                Series(name, table[name].to_numpy(dtype=np.float64) if name in table else np.full(len(table), np.nan))
                for name in methods
            ]
            chart = line_chart(f"{concept}: {title}", [float(step) for step in table.index], series)
            parts.append(Chart(f"{concept}: {title}", chart, text=_legend(methods)))
    points = at_budget(cells)
    found = []
    for metric in (axes.fidelity, axes.preservation):
        if metric in points:
            for column in ("end", "unrest", "cosine_end"):
                if column in course:
                    result = correlation_with(course, points, metric, column)
                    texts = [figure(result[name]) for name in ("runs", "spearman", "p")]
                    found.append([f"{column} and {metric}", *texts])
    means = course.groupby("method", sort=False)[names].mean()
    by_method = [[str(method), *(figure(float(value)) for value in row)] for method, row in means.iterrows()]
    first: list[Part] = [
        Table(["method", *names], by_method, title="Means over concepts and seeds"),
        Table(["run", *names], rows, title="Course of each run", folded=True),
    ]
    if categories is not None:
        text = (
            "At the original model's own pictures of the prompts, against the untouched base: 0 is a model that "
            "changes nothing there."
        )
        for metric, title in ((PROMPT_LAMBDA, "λ* by category of prompts"), (PROMPT_COSINE, "Guidance cosine there")):
            on_prompts = _by_category(categories, metric, title, text)
            first += [on_prompts] if on_prompts.rows else []
    if found:
        title = "What it goes along with, over runs (Spearman)"
        first.append(Table(["pair", "runs", "correlation", "p"], found, title=title))
    parts = first + parts
    text = (
        "How much of the extractor's guidance the model has taken up. `settled at`: the step from which the running "
        "mean stays within a tenth of the end's value; `unrest`: standard deviation over the second half, by that "
        "value; `pearson`, `spearman`: correlation of λ* and the guidance cosine over the steps."
    )
    return Section("λ*", text, parts)


def _legend(methods: Sequence[str]) -> str:
    return "" if len(methods) < 2 else "In the order of the colours: " + ", ".join(methods)


def sensitivity_section(sensitivities: Mapping[str, pd.DataFrame], axes: Axes) -> Section:
    """Fidelity and damage over one setting at a time, at the end of the budget.

    Args:
        sensitivities: name of the setting -> cells with a numeric column `value`.
    """
    parts: list[Part] = []
    for name, cells in sensitivities.items():
        points = axes.points(at_budget(cells))
        rows = []
        for value, own in points.groupby("value"):
            by_seed = own.groupby("seed")[["fidelity", "damage"]].mean()
            rows.append([f"{value:g}", str(len(own)), spread(by_seed["fidelity"]), spread(by_seed["damage"])])
        parts.append(Table([name, "cells", label(axes.fidelity), f"damage: {label(axes.preservation)}"], rows, name))
        for column, metric in (("fidelity", axes.fidelity), ("damage", axes.preservation)):
            title = f"{label(metric)} over {name}"
            clouds = []
            for number, (concept, own) in enumerate(points.groupby("concept", sort=False), 1):
                means = own.groupby("value", as_index=False)[column].mean()
                x, y = (means[key].to_numpy(dtype=np.float64) for key in ("value", column))
                clouds.append(Cloud(str(concept), x, y, number))
            means = points.groupby("value", as_index=False)[column].mean()
            x, y = (means[key].to_numpy(dtype=np.float64) for key in ("value", column))
            clouds.append(Cloud("mean", x, y, 0))
            what = label(metric) if column == "fidelity" else f"damage: {label(metric)}"
            parts.append(Chart(title, scatter_chart(title, clouds, name, what)))
    return Section("Sensitivity", "One setting varied, all else as in the profile, at the end of the budget.", parts)


def category_section(categories: pd.DataFrame, metrics: Sequence[str]) -> Section:
    """Method x category of prompts, for a few metrics.

    Args:
        categories: columns method, concept, seed, category, metric, value (`result.category_rows`).
    """
    tables = [_by_category(categories, metric, label(metric)) for metric in metrics]
    return Section("Categories of prompts", "Means over concepts and seeds.", [table for table in tables if table.rows])


def _by_category(categories: pd.DataFrame, metric: str, title: str, text: str = "") -> Table:
    own = categories[categories["metric"] == metric]
    table = own.pivot_table(index="method", columns="category", values="value", aggfunc="mean", sort=False)
    rows = [[str(method), *(figure(float(value)) for value in row)] for method, row in table.iterrows()]
    return Table(["method", *map(str, table.columns)], rows, title=title, text=text)


def leakage_section(cells: pd.DataFrame) -> Section:
    """What of the references' background comes along."""
    table = leakage_table(at_budget(cells))
    measures = [measure for measure in LEAKAGE if measure in table]
    head = ["method", "concepts", *(text for name in measures for text in (label(name), "beyond the original"))]
    rows = [
        [
            str(row["method"]),
            str(row["concepts"]),
            *(figure(float(row[key])) for name in measures for key in (name, f"{name}/excess")),
        ]
        for _, row in table.iterrows()
    ]
    text = (
        "How much of the references' background stands in pictures whose prompt asks for another one, and how much "
        "more that is than in the original model's pictures of the same prompts."
    )
    return Section("Leakage", text, [Table(head, rows)] if measures else [])


def cost_section(cells: pd.DataFrame) -> Section:
    """What each method costs, from the same runs."""
    usual = at_budget(cells)
    shown = [cost for cost in COSTS if cost in usual and usual[cost].notna().any()]
    rows = []
    for method in methods_of(usual):
        own = usual[usual["method"] == method]
        rows.append([method, f"{own['step'].mean():.0f}", *(spread(own[cost].dropna()) for cost in shown)])
    head = ["method", "steps", *(_COST_NAMES[cost] for cost in shown)]
    return Section("Cost", "Mean ± standard deviation over cells.", [Table(head, rows)] if shown else [])


def sheet_section(sheets: Mapping[str, Path]) -> Section:
    """Pictures side by side."""
    text = "A row per prompt, a column per method, the same seed along a row."
    return Section("Pictures", text, [Sheet(title, file) for title, file in sheets.items()])


def failure_section(cells: pd.DataFrame) -> Section:
    """The cells that could not be measured."""
    lost = failed(cells)
    rows = [[*(str(row[key]) for key in KEYS), str(row[ERROR])] for _, row in lost.iterrows()]
    return Section("Failed cells", f"{len(lost)} of {len(cells)}.", [Table([*KEYS, "reason"], rows)])


def not_empty(sections: Sequence[Section]) -> Iterator[Section]:
    """The sections that have something to show."""
    return (section for section in sections if section.parts)
