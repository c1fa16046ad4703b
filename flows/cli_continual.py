"""`purecc plan`, `continual` and `retrain`: runs over many concepts."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli_options import DEFAULT_PROFILE, Json, ProfileName, Set
from flows.console import arguments, command, stdout

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="default: every concept of the project")]

_COLOURS = {"train": "yellow", "reuse": "green", "retire": "magenta", "quarantined": "bold red"}


def plan(
    names: Names = None,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say for each concept what a run would do, and why."""
    with command(as_json) as output:
        with arguments():
            from flows.plan import make_plan

            decisions = make_plan(profile, overrides or [], names or None)
        facts = [decision.to_json() for decision in decisions]
        output.result(facts, lambda: show_plan(facts))


def show_plan(plan: list[dict[str, Any]]) -> None:
    """Print a plan for a person."""
    if not plan:
        stdout.print("no concepts in data.dvc: purecc concepts add NAME IMAGES...")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "action", "reason"):
        table.add_column(column)
    for row in plan:
        action = f"[{_COLOURS[row['action']]}]{row['action']}[/]"
        table.add_row(escape(row["name"]), action, escape(row["reason"]))
    stdout.print(table)
    counts = {action: sum(row["action"] == action for row in plan) for action in _COLOURS}
    stdout.print(", ".join(f"{count} {action}" for action, count in counts.items() if count), highlight=False)
