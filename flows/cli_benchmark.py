"""`purecc benchmark`: methods and settings measured against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.cli_options import Json
from flows.console import FAILED, arguments, command, relative, stdout


def benchmark(
    plan: Annotated[Path, typer.Option(help="YAML: concepts, seeds, steps, variants; see profiles/benchmarks")] = Path(
        "profiles/benchmarks/methods.yaml"
    ),
    methods: Annotated[str | None, typer.Option(help="these variants of the plan only: a,b")] = None,
    concepts: Annotated[str | None, typer.Option(help="these concepts only: x,y")] = None,
    seeds: Annotated[str | None, typer.Option(help="these seeds, instead of the plan's: 0,1")] = None,
    workers: Annotated[int, typer.Option(min=1, help="cells at once, each a process of one thread")] = 1,
    out: Annotated[Path | None, typer.Option(help="folder of the table; default: docs/benchmarks/<plan>")] = None,
    as_json: Json = False,
) -> None:
    """Measure what is not measured yet, and write the table."""
    with command(as_json) as output:
        with arguments():
            from components.benchmark.plan import read_plan
            from components.settings import load_profile, project_root

            root = project_root()
            wanted = read_plan(plan).only(
                variants=_names(methods), concepts=_names(concepts), seeds=[int(seed) for seed in _names(seeds)]
            )
            for cell in wanted.cells():
                load_profile(wanted.profile, cell.overrides)
        folder = out or root / "docs" / "benchmarks" / plan.stem
        from flows import start

        rows = start.benchmark(plan.stem, wanted, folder / "cells.csv", workers=workers)
        failed = [row for row in rows if row["status"] == "failed"]
        facts: dict[str, Any] = {
            "name": plan.stem,
            "table": str(folder / "cells.csv"),
            "rows": len(rows),
            "failed": [{key: row[key] for key in ("variant", "concept", "seed", "error")} for row in failed],
        }
        output.result(facts, lambda: _show(facts, root))
        if failed:
            raise typer.Exit(FAILED)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _show(facts: dict[str, Any], root: Path) -> None:
    stdout.print(escape(f"{facts['rows']} rows in {relative(facts['table'], root)}"))
    for row in facts["failed"]:
        stdout.print(
            escape(f"failed: {row['variant']} {row['concept']} seed {row['seed']}: {row['error']}"), style="red"
        )
