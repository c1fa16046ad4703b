"""The report of a benchmark: an HTML page, the same as Markdown, and its tables as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from components.evaluation import benchmark_sections as sections
from components.evaluation.cells import failed, measured
from components.evaluation.curve_section import HOW_CURVES_ARE_READ, frontier_section
from components.evaluation.curves import (
    Axes,
    compare,
    compare_at_shared_fidelity,
    damage_at_fidelity,
    frontiers,
    hypervolumes,
)
from components.evaluation.document import Section, write_html, write_markdown
from components.evaluation.lambda_study import lambda_course
from components.evaluation.paper_table import paper_table
from components.files import atomic_file

AXES = (
    Axes("fidelity/recognised_probability", "preservation/prior_distance", worst=0.1),
    Axes("fidelity/recognised_probability", "preservation/outside_distance", worst=0.1),
    Axes("fidelity/recognised_probability", "preservation/clip_t_delta", worst=10.0, better="higher"),
    Axes("fidelity/recognised_probability", "preservation/seg_cons", worst=10.0, untouched=100.0, better="higher"),
    Axes("fidelity/dino_masked", "preservation/prior_distance", worst=0.1),
    Axes("fidelity/csd", "preservation/prior_distance", worst=0.1),
)
"""What the tiny world is compared by, each where it was measured; the oracle's recognition is its surest fidelity."""
_BY_CATEGORY = (
    "fidelity/recognised_probability",
    "fidelity/dino_masked",
    "preservation/clip_t_delta",
    "preservation/seg_cons",
    "preservation/accuracy_delta",
    "preservation/background_leakage_area",
)


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Attributes:
        cells: the rows to show of the table of `components.evaluation.cells`, failed ones included.
        baseline: the method that the others are tested against.
        axes: the planes in which curves are compared; the first one is used where there is room for one.
        levels: fidelities at which damage is compared besides the shared one.
        history: of `lambda_study.join_histories`, if lambda* is to be shown.
        categories: rows of `result.category_rows` with method, concept and seed, if categories are to be shown.
        sensitivities: setting -> cells with a numeric column `value`.
        sheets: title -> PNG with pictures side by side (`comparison.compose`).
        facts: what the reader has to know: command, profile, base, machine, duration.
    """

    cells: pd.DataFrame
    baseline: str
    axes: Sequence[Axes] = AXES
    levels: Sequence[float] = ()
    history: pd.DataFrame | None = None
    categories: pd.DataFrame | None = None
    sensitivities: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    sheets: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def sections(self) -> list[Section]:
        """All sections that have something to show."""
        found = [sections.single_points(self.cells)]
        planes = [frontier_section(self.cells, axes, self.levels, self.baseline) for axes in self.axes]
        if planes:
            planes[0] = replace(planes[0], text=f"{HOW_CURVES_ARE_READ} {planes[0].text}")
        found += planes
        if self.sheets:
            found.append(sections.sheet_section(self.sheets))
        if self.history is not None:
            found.append(sections.lambda_section(self.history, self.cells, self.axes[0], self.categories))
        if self.sensitivities:
            found.append(sections.sensitivity_section(self.sensitivities, self.axes[0]))
        found.append(sections.leakage_section(self.cells))
        if self.categories is not None:
            found.append(sections.category_section(self.categories, _BY_CATEGORY))
        found.append(sections.cost_section(self.cells))
        if len(failed(self.cells)):
            found.append(sections.failure_section(self.cells))
        return list(sections.not_empty(found))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name -> table, unrounded: what the report is made from."""
        tables = {kind: paper_table(self.cells, kind) for kind in ("instance", "style")}
        for number, axes in enumerate(self.axes):
            named = {"fidelity_metric": axes.fidelity, "preservation_metric": axes.preservation}
            volumes = hypervolumes(self.cells, axes)
            tables[f"frontier-{number}"] = frontiers(self.cells, axes).assign(**named)
            tables[f"hypervolume-{number}"] = volumes.assign(**named)
            tables[f"matched-{number}"] = damage_at_fidelity(self.cells, axes).assign(**named)
            tests = {
                "hypervolume": compare(volumes, "hypervolume", self.baseline, better="higher"),
                "damage at the shared fidelity": compare_at_shared_fidelity(self.cells, axes, self.baseline),
            }
            tables[f"tests-{number}"] = pd.concat(
                [test.assign(figure=name, baseline=self.baseline, **named) for name, test in tests.items()]
            )
        if self.history is not None:
            tables["lambda"] = lambda_course(self.history)
        return {name: table for name, table in tables.items() if len(table)}


def write_benchmark(benchmark: Benchmark, folder: Path, name: str = "benchmark") -> dict[str, Path]:
    """Write `<name>.html`, `<name>.md` (its pictures in `<name>/`) and `<name>/<table>.csv`.

    Returns:
        `html` and `markdown` -> file.
    """
    files = {kind: folder / f"{name}.{ending}" for kind, ending in (("html", "html"), ("markdown", "md"))}
    found, count = benchmark.sections(), len(measured(benchmark.cells))
    concepts = benchmark.cells["concept"].nunique()
    lead = (
        f"{benchmark.cells['method'].nunique()} methods on {concepts} concepts: {count} measured points. Every method "
        "learned from the same references on the same base, and is measured on the same prompts and seeds."
    )
    content = {"title": "Benchmark", "lead": lead, "facts": benchmark.facts, "sections": found}
    write_html(files["html"], **content)  # type: ignore[arg-type]
    write_markdown(files["markdown"], **content)  # type: ignore[arg-type]
    for table_name, table in benchmark.tables().items():
        with atomic_file(folder / name / f"{table_name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    return files
