"""What a benchmark has measured so far, as tables and pictures on disk: all that its report is made from.

benchmark.csv    a row per method, concept, seed, step and scale (`components.evaluation.cells`), with `key`
categories.csv   metrics by category of prompts, of every cell's last step
lambda.csv       the course of lambda* and of the guidance, of every cell that has one
sheets/          pictures side by side, a concept each
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.benchmark.cell import CATEGORIES, EVALUATION, HISTORY, ROWS, read_json
from components.benchmark.plan import Plan
from components.evaluation.benchmark_report import Benchmark, write_benchmark
from components.evaluation.cells import KEYS, checked, measured, read_cells
from components.evaluation.comparison import compose
from components.evaluation.lambda_study import COSINE, LAMBDA, NORM, join_histories
from components.evaluation.pictures import Picture, read_png
from components.evaluation.result import EvaluationResult
from components.files import atomic_file
from components.learning.history import read_history

CELLS, CATEGORY_TABLE, LAMBDA_TABLE, SHEETS = "benchmark.csv", "categories.csv", "lambda.csv", "sheets"
KEY = "key"
"""Column of `benchmark.csv`: digest of all that a cell was measured from."""

_RUN = ["method", "concept", "seed"]
_SHOWN, _SHOWN_WITHOUT = 4, 3  # prompts of a sheet, with the concept and without it


@dataclass(frozen=True)
class Kept:
    """A measured cell whose folder is at hand."""

    method: str
    concept: str
    seed: int
    folder: Path


def read_table(folder: Path) -> pd.DataFrame:
    """The measured rows of `benchmark.csv`; failed ones are left out, they are tried again.

    Raises:
        InvalidInput: the table is damaged.
    """
    file = folder / CELLS
    if not file.is_file():
        return pd.DataFrame(columns=[*KEYS, "error", KEY])
    return measured(read_cells(file))


def add_rows(table: pd.DataFrame, rows: Iterable[Mapping[str, Any]], key: str) -> pd.DataFrame:
    """The table with the rows of a cell in the place of what stood there of it."""
    new = pd.DataFrame([{**row, KEY: key} for row in rows])
    old = table[[tuple(names) not in set(_names(new)) for names in _names(table)]]
    return checked(pd.concat([old, new], ignore_index=True) if len(old) else new)


def _names(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in table[_RUN].astype({"seed": int}).itertuples(index=False)] if len(table) else []


def rows_of(kept: Kept) -> list[dict[str, Any]]:
    """The rows of a cell, under its title."""
    return [{**row, "method": kept.method} for row in read_json(kept.folder / ROWS)]


def gather(folder: Path, cells: Sequence[Kept]) -> None:
    """Bring `categories.csv`, `lambda.csv` and the sheets up to date with the cells whose folders are at hand."""
    found = [
        pd.DataFrame(read_json(cell.folder / CATEGORIES)).assign(
            method=cell.method, concept=cell.concept, seed=cell.seed
        )
        for cell in cells
    ]
    _replace(folder / CATEGORY_TABLE, pd.concat(found, ignore_index=True) if found else pd.DataFrame())
    course = join_histories(
        (cell.method, cell.concept, cell.seed, read_history(cell.folder / HISTORY)) for cell in cells
    )
    if LAMBDA in course:
        columns = [*_RUN, "step", *(name for name in (LAMBDA, COSINE, NORM) if name in course)]
        _replace(folder / LAMBDA_TABLE, course.loc[course[LAMBDA].notna(), columns])
    for concept in dict.fromkeys(cell.concept for cell in cells):
        seed = min(cell.seed for cell in cells if cell.concept == concept)
        of_concept = [cell for cell in cells if (cell.concept, cell.seed) == (concept, seed)]
        target = folder / SHEETS / f"{concept}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet = _sheet(of_concept)
        with atomic_file(target) as temporary:
            sheet.save(temporary, format="png")


def _replace(file: Path, new: pd.DataFrame) -> None:
    """Write a table in which the runs of `new` take the place of what the file has of them."""
    if new.empty:
        return
    if file.is_file():
        old = pd.read_csv(file)
        fresh = set(_names(new))
        new = pd.concat([old[[names not in fresh for names in _names(old)]], new], ignore_index=True)
    with atomic_file(file) as temporary:
        new.to_csv(temporary, index=False, float_format="%.5g")


def _sheet(cells: Sequence[Kept]) -> Any:
    """References, then the same prompts and seeds by the original and by every method."""
    columns: dict[str, list[Picture]] = {}
    prompts: list[str] = []
    references: list[Picture] = []
    for cell in cells:
        result = EvaluationResult.from_json(cell.folder / EVALUATION)
        folder = cell.folder / EVALUATION
        with_concept = [row for row in result.rows if row["has_concept"]]
        by_category = list({row["category"]: row for row in reversed(with_concept)}.values())[::-1]
        rows = sorted(by_category, key=lambda row: str(row["complete"]))[:_SHOWN]
        rows += [row for row in result.rows if not row["has_concept"]][:_SHOWN_WITHOUT]
        if not columns:
            prompts = [row["complete"] for row in rows]
            references = [read_png(folder / path) for path in result.references]
            columns["original"] = [read_png(folder / row["images"]["original"]) for row in rows]
        columns[cell.method] = [read_png(folder / row["images"]["custom"]) for row in rows]
    return compose(references, columns, prompts, scale=2)


def write_report(folder: Path, plan: Plan, facts: Mapping[str, str]) -> dict[str, Path]:
    """The report of the plan's cells: HTML, Markdown and tables; see `benchmark_report.write_benchmark`.

    What the tables of `folder` hold beside them stays there and is not shown: means are over the cells that were asked
    for, not over whatever was measured before.

    Returns:
        `html`, `markdown` and `cells` -> file.
    """
    cells = _of_plan(read_cells(folder / CELLS), plan)
    order = {title: number for number, title in enumerate(plan.variants)}  # of the plan, not of the measuring
    cells = cells.sort_values("method", key=lambda methods: methods.map(order), kind="stable")
    sensitivities = {}
    for setting, points in plan.sensitivities.items():
        values = {method: value for value, method in points.items()}
        rows = cells[cells["method"].isin(list(values))]
        if len(rows):
            sensitivities[setting] = rows.assign(value=rows["method"].map(values).astype(float))
    seconds = cells["cost/cell_seconds"].sum() if "cost/cell_seconds" in cells else 0
    machine = f"{os.cpu_count()} CPUs ({platform.machine()})"
    facts = {**facts, "measured on": machine, "time of all cells": f"{seconds / 3600:.1f} h of one process"}
    files = {name: folder / name for name in (CATEGORY_TABLE, LAMBDA_TABLE)}
    tables = {name: _of_plan(pd.read_csv(file), plan) if file.is_file() else None for name, file in files.items()}
    benchmark = Benchmark(
        cells=cells,
        baseline=plan.baseline or next(iter(plan.variants)),
        history=tables[LAMBDA_TABLE],
        categories=tables[CATEGORY_TABLE],
        sensitivities=sensitivities,
        sheets={path.stem: path for path in sorted((folder / SHEETS).glob("*.png")) if path.stem in plan.concepts},
        facts=facts,
    )
    return {**write_benchmark(benchmark, folder), "cells": folder / CELLS}


def _of_plan(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    wanted = {(cell.variant, cell.concept, cell.seed) for cell in plan.cells()}
    return table[[names in wanted for names in _names(table)]]
