"""`purecc benchmark`: methods and settings measured against each other."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from components.benchmark.plan import Plan, read_plan
from components.concepts.store import find
from components.errors import InvalidInput
from components.settings import load_profile
from flows.cli_options import Json
from flows.console import FAILED, arguments, command, relative, stdout


def benchmark(
    plan: Annotated[
        Path | None,
        typer.Option(help="YAML: concepts, seeds, steps, variants; default: profiles/benchmarks/methods.yaml"),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="these variants of the plan only: a,b")] = None,
    profile: Annotated[str | None, typer.Option(help="a file of profiles/, instead of the plan's")] = None,
    concepts: Annotated[str | None, typer.Option(help="these concepts, instead of the plan's: x,y")] = None,
    seeds: Annotated[str | None, typer.Option(help="these seeds, instead of the plan's: 0,1")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="so many of each category, instead of the plan's")] = None,
    workers: Annotated[int, typer.Option(min=1, help="cells at once, each a process of one thread")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of table and report; default: docs/benchmarks/<plan>, with another profile and its name"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what is not measured yet, and write table and report."""
    from components.settings import project_root
    from flows import start

    with command(as_json) as output:
        with arguments():
            root = project_root()
            file = plan or root / "profiles" / "benchmarks" / "methods.yaml"
            wanted = _read(file, methods, profile, concepts, seeds, prompts)
        for name in wanted.concepts:
            start.fetch_data(root, name)
        with arguments():
            for name in wanted.concepts:
                find(root / "data" / "concepts", name)
        title = _title(file, wanted)
        folder = out or root / "docs" / "benchmarks" / title
        asked = {
            "--plan": relative(file.resolve(), root),
            "--methods": methods,
            "--profile": profile,
            "--concepts": concepts,
            "--seeds": seeds,
            "--prompts": prompts,
        }
        facts = {"command": _command(asked), "profile": wanted.profile}
        files = start.benchmark(title, wanted, folder, workers=workers, facts=facts)
        from components.evaluation.cells import failed, read_cells

        lost = failed(read_cells(folder / "benchmark.csv")).to_dict("records")
        result: dict[str, Any] = {
            "name": title,
            **files,
            "failed": [{key: row[key] for key in ("method", "concept", "seed", "error")} for row in lost],
        }
        output.result(result, lambda: _show(result, root))
        if lost:
            raise typer.Exit(FAILED)


def _read(
    file: Path, methods: str | None, profile: str | None, concepts: str | None, seeds: str | None, prompts: int | None
) -> Plan:
    """The plan, or the part of it that was asked for, with settings that are known to be valid."""
    try:
        numbers = [int(seed) for seed in _names(seeds)]
    except ValueError as error:
        raise InvalidInput(f"{seeds!r} are not whole numbers", field="--seeds", mend="write e.g. 0,1") from error
    wanted = read_plan(file).only(variants=_names(methods), concepts=_names(concepts), seeds=numbers)
    if profile is not None:
        wanted = wanted.model_copy(update={"profile": profile})
    if prompts is not None:
        wanted = wanted.with_settings(f"evaluation.prompts_per_category={prompts}")
    for cell in wanted.cells():
        load_profile(wanted.profile, cell.overrides)
    return wanted


def _command(options: Mapping[str, object]) -> str:
    """The command that makes the report again; options that were not given are left out."""
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    return shlex.join(["purecc", "benchmark", *(text for option in given for text in option)])


def _title(file: Path, wanted: Plan) -> str:
    """The plan's name, and that of another profile than its own: a table is of one profile."""
    return file.stem if wanted.profile == read_plan(file).profile else f"{file.stem}-{Path(wanted.profile).stem}"


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _show(result: dict[str, Any], root: Path) -> None:
    for name in ("html", "markdown", "cells"):
        stdout.print(escape(relative(result[name], root)), soft_wrap=True)
    for row in result["failed"]:
        cell = f"{row['method']} {row['concept']} seed {row['seed']}"
        stdout.print(escape(f"failed: {cell}: {row['error']}"), style="red")
