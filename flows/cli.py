"""The command line: `purecc`. Every command takes `--json`; see `flows.console` for exit codes.

Commands import what they need when they run: `purecc --help` and the lists answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

import components.quiet  # noqa: F401  (before every dependency)
from flows import cli_benchmark, cli_concepts, cli_continual, cli_export, cli_gc, cli_models
from flows.cli_options import DEFAULT_PROFILE, Json, Name, ProfileName, Set
from flows.console import FAILED, WRONG_USE, WrongUse, arguments, command, stdout

DEMO = "striped_star"

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it tells at import what it could do with torchvision

app = typer.Typer(
    name="purecc",
    help="Teach a text-to-image flow model a concept from a few images, and change nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_concepts.app, name="concepts")
app.add_typer(cli_models.app, name="models")
app.command("gc")(cli_gc.gc)
app.command("export")(cli_export.export)
app.command()(cli_benchmark.benchmark)
app.command()(cli_continual.plan)
app.command()(cli_continual.continual)
app.command()(cli_continual.retrain)


@app.command()
def demo(as_json: Json = False) -> None:
    """The main job on a shipped concept, with the tiny profile."""
    _customize(DEMO, DEFAULT_PROFILE, [], as_json)


@app.command()
def customize(name: Name, profile: ProfileName = DEFAULT_PROFILE, overrides: Set = None, as_json: Json = False) -> None:
    """Take a concept the whole way: validate, train, evaluate, and promote what passes its gates."""
    _customize(name, profile, overrides or [], as_json)


def _customize(name: str, profile: str, overrides: list[str], as_json: bool) -> None:
    from components.concepts.store import find
    from components.settings import load_profile, project_root
    from flows.outcome import GatesRefused

    with command(as_json) as output:
        with arguments():
            root = project_root()
            load_profile(profile, overrides)
        from flows import peers, start

        if peers.followed():
            return
        start.fetch_data(root, name)
        with arguments():
            find(root / "data" / "concepts", name)
        from flows.summary import show

        try:
            with peers.leading():
                outcome = start.customize(name, profile, overrides)
        except GatesRefused as refusal:
            outcome = refusal.outcome
        output.result(outcome.to_json(), lambda: show(outcome, root))
        if outcome.refused:
            raise typer.Exit(FAILED)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="e.g. 'a <striped_star> star on the right, snow background'")],
    seed: Annotated[int, typer.Option(min=0, help="equal seeds give equal noise")] = 0,
    out: Annotated[Path, typer.Option(help="the PNG to write")] = Path("generated.png"),
    original: Annotated[bool, typer.Option("--original", help="the original model's image of the same text")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the profile's")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="guidance scale; default: the profile's")] = None,
    compose: Annotated[
        Literal["merge", "fusion", "switch", "composite"],
        typer.Option(help="how the adapters of several concepts act together"),
    ] = "merge",
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Draw an image with the champions of the concepts that the prompt names as <name>."""
    from components.settings import load_profile, project_root

    with command(as_json) as output:
        with arguments():
            root, settings = project_root(), load_profile(profile, overrides or [])
            if out.suffix.lower() != ".png":
                raise WrongUse(f"{out}: the image is a PNG: give a name that ends in .png")
        from flows.generate import generate as draw

        facts = draw(
            root, settings, prompt, seed=seed, out=out, original=original, steps=steps, guidance=guidance, how=compose
        )
        output.result(facts, lambda: stdout.print(f"{escape(facts['file'])}  {escape(facts['note'])}".rstrip()))


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(help="an MLflow run, or a concept; default: the latest run")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="only say where it is")] = False,
    as_json: Json = False,
) -> None:
    """Open the report of a run in the browser."""
    from components.settings import project_root
    from flows.reports import find_report, open_report

    with command(as_json) as output:
        with arguments():
            path = find_report(project_root(), run)
        opened = not (no_open or as_json) and open_report(path)
        facts = {"report": str(path), "concept": path.parent.name, "run": path.stem, "opened": opened}
        output.result(facts, lambda: stdout.print(escape(str(path)), soft_wrap=True))


@app.command()
def ui(
    host: Annotated[
        str, typer.Option(help="address to listen at; beyond this machine only with passwords")
    ] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    as_json: Json = False,
) -> None:
    """The Prefect and MLflow pages, until Ctrl-C."""
    from flows.ui import serve

    with command(as_json) as output:
        with nullcontext() if as_json else output.to_stdout():
            serve(host, prefect_port=prefect_port, mlflow_port=mlflow_port)
        output.result({"status": "stopped"}, lambda: None)


@app.command()
def doctor(profile: ProfileName = DEFAULT_PROFILE, as_json: Json = False) -> None:
    """Say what is missing on this machine, and the mend."""
    from flows.doctor import run_checks

    with command(as_json) as output:
        checks = run_checks(profile)
        facts = [{"name": c.name, "ok": c.ok, "detail": c.detail, "mend": c.mend} for c in checks]
        output.result(facts, lambda: _show_checks(facts))
        if not all(check.ok for check in checks):
            raise typer.Exit(FAILED)


def _show_checks(checks: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = "[green]ok[/]" if check["ok"] else "[bold red]no[/]"
        mend = f"\n[yellow]{escape(check['mend'])}[/]" if check["mend"] else ""
        table.add_row(mark, check["name"], escape(check["detail"]) + mend)
    stdout.print(table)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # SIGTERM and SIGHUP clean up as Ctrl-C does


def main() -> None:
    """The entry point: runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _terminate)
    try:
        app()
    except SystemExit as error:
        if error.code == WRONG_USE and "--json" in sys.argv[1:] and not _stdout_written():
            message = "wrong use: see the message on stderr, or --help"
            sys.stdout.write(json.dumps({"status": "error", "error": {"kind": "WrongUse", "message": message}}) + "\n")
        raise


def _stdout_written() -> bool:
    from flows import console

    return console.documents > 0


if __name__ == "__main__":
    main()
