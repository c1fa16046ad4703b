"""`purecc plan`, `continual` and `retrain`: runs over many concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli_options import DEFAULT_PROFILE, Json, ProfileName, Set
from flows.console import FAILED, arguments, command, relative, stderr, stdout

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="default: every concept of the project")]

Mode = Annotated[
    Literal["independent", "sequential"],
    typer.Option(help="each on the pristine base, or each on the model that has those before"),
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="REV", help="only what changed since this commit, branch or tag")
]
Workers = Annotated[
    bool, typer.Option("--workers", help="one flow run per concept, by the deployment `customize` and its work pool")
]

_COLOURS = {"train": "yellow", "reuse": "green", "retire": "magenta", "quarantined": "bold red"}


def plan(
    names: Names = None,
    since: Since = None,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say for each concept what a run would do, and why."""
    with command(as_json) as output:
        with arguments():
            from flows.plan import make_plan

            wanted = names or None
            if since is not None:
                wanted = _changed_since(since, wanted, profile, overrides or [])
            decisions = make_plan(profile, overrides or [], wanted)
        facts = [decision.to_json() for decision in decisions]
        output.result(facts, lambda: show_plan(facts))


def continual(
    names: Names = None,
    mode: Mode = "independent",
    workers: Workers = False,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Bring every concept to the state that data and profile ask for; check them together; pin them as a bundle."""
    with command(as_json) as output:
        from components.settings import load_profile, project_root

        with arguments():
            root = project_root()
            load_profile(profile, overrides or [])
        from flows import peers, start

        if peers.followed():
            return
        with peers.leading():
            facts = start.continual(
                names or None, profile, overrides or [], mode=mode, dispatch="workers" if workers else "process"
            )
        output.result(facts, lambda: show_summary(facts, root))
        if facts["state"] != "completed":
            raise typer.Exit(FAILED)


def retrain(
    since: Annotated[str, typer.Option(metavar="REV", help="a commit, branch or tag; a shallow clone fetches it")],
    mode: Mode = "independent",
    workers: Workers = False,
    deployment: Annotated[
        bool,
        typer.Option("--deployment", help="only trigger the deployment `retrain` on the server, do not train here"),
    ] = False,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Bring what changed since a revision, data or profile, to where it should be."""
    with command(as_json) as output:
        from components import revisions
        from components.settings import project_root

        with arguments():
            root = project_root()
            commit = revisions.resolve(root, since)
            wanted = _changed_since(commit, None, profile, overrides or [])
        from flows import peers, start

        dispatch: Literal["process", "workers"] = "workers" if workers else "process"
        if deployment:
            facts = start.trigger_retrain(commit, profile, overrides or [], mode, dispatch)
            output.result(facts, lambda: stdout.print(f"triggered {facts['deployment']}: {facts['flow_run']}"))
            return
        if peers.followed():
            return
        with peers.leading():
            facts = start.continual(wanted, profile, overrides or [], mode=mode, dispatch=dispatch)
        output.result(facts, lambda: show_summary(facts, root))
        if facts["state"] != "completed":
            raise typer.Exit(FAILED)


def _changed_since(since: str, names: list[str] | None, profile: str, overrides: list[str]) -> list[str]:
    """The named concepts, or all, of which something changed since a revision."""
    from components.settings import project_root
    from flows.changes import names_since

    changes, changed = names_since(project_root(), since, profile, overrides)
    stderr.print(str(changes), style="dim", highlight=False)
    return changed if names is None else [name for name in names if name in changed]


def show_summary(facts: dict[str, Any], root: Path) -> None:
    """Print the end of a run for a person."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "status", "version", "seconds", "reason"):
        table.add_column(column)
    for row in facts["concepts"]:
        colour = {"failed": "bold red", "refused": "bold red", "quarantined": "red", "left": "yellow"}.get(
            row["status"], "green"
        )
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else "-"
        version = str(row["version"] or "-")
        table.add_row(escape(row["name"]), f"[{colour}]{row['status']}[/]", version, seconds, escape(row["reason"]))
    stdout.print(table)
    for key, value in (facts["checks"].get("metrics") or {}).items():
        stdout.print(f"{key:32} {value:.4g}" if value is not None else f"{key:32} -", highlight=False)
    if facts["bundle"]:
        bundle = facts["bundle"]
        stdout.print(f"bundle   purecc-bundle version {bundle['version']}, {bundle['status']}", highlight=False)
    if facts["report"]:
        stdout.print(f"report   {escape(relative(facts['report'], root))}", soft_wrap=True, highlight=False)
    colour = "green" if facts["state"] == "completed" else "red"
    stdout.print(f"[bold {colour}]{escape(facts['message'])}[/]", soft_wrap=True, highlight=False)


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
