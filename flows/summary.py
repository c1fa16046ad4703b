"""The last screen of a customize: what happened, where the report is, what to do next."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flows.cli_options import DEFAULT_PROFILE
from flows.console import relative, stdout
from flows.outcome import Outcome


def show(outcome: Outcome, root: Path) -> None:
    """Print the outcome for a person."""
    if outcome.gates:
        stdout.print(_gates(outcome))
    elif outcome.status != "unchanged":
        stdout.print("the profile has no gates", style="yellow")
    stdout.print(_headline(outcome), soft_wrap=True, highlight=False)
    if outcome.report:
        path = escape(relative(outcome.report, root))
        stdout.print(f"report   {path}  (purecc report)", soft_wrap=True, highlight=False)
    if outcome.run:
        stdout.print(f"run      {outcome.run}  (purecc ui)", soft_wrap=True, highlight=False)
    stdout.print(f"next     {_next(outcome)}", soft_wrap=True, highlight=False)


def _headline(outcome: Outcome) -> str:
    name, reason = escape(outcome.name), escape(outcome.reason)
    if outcome.refused:
        stays = f"version {outcome.champion} stays the champion" if outcome.champion else "there is no champion"
        again = "unchanged, and still " if outcome.status == "unchanged" else ""
        return f"[bold red]{again}refused[/] {name} version {outcome.version}: {reason}; {stays}"
    if outcome.status == "unchanged":
        return f"[bold green]unchanged[/] {name}: {reason}"
    instead = f" instead of version {outcome.replaced}" if outcome.replaced else ""
    return f"[bold green]champion[/] {name}: version {outcome.version}{instead}, {reason}"


def _next(outcome: Outcome) -> str:
    if outcome.refused:
        return "look at the report, then change the references or the profile (--set KEY=VALUE)"
    hint = f"(a text like those of: purecc concepts show {outcome.name})"
    profile = "" if outcome.profile == DEFAULT_PROFILE else f" --profile {outcome.profile}"
    return escape(f'purecc generate "a <{outcome.name}> ..." --seed 1{profile}   {hint}')


def _gates(outcome: Outcome) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("gate", "value", "bound", "champion", ""):
        table.add_column(column)
    for gate in outcome.gates:
        value = "-" if gate["value"] is None else f"{gate['value']:.4g}"
        champion = "-" if gate["champion"] is None else f"{gate['champion']:.4g}"
        mark = "[green]passed[/]" if gate["passed"] else "[bold red]failed[/]"
        table.add_row(escape(gate["metric"]), value, escape(gate["bound"]), champion, mark)
    return table
