"""What the workflows on GitHub say to people: tables in Markdown.

    python -m flows.ci validation --since REV --out validation.md
    python -m flows.ci gates NAME VERSION --out gates.md

Exit codes as for `purecc`. The file is written whatever the verdict is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import components.quiet  # noqa: F401  (before every dependency)
from flows.cli_options import DEFAULT_PROFILE, Name, ProfileName
from flows.console import FAILED, command, stderr

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)

_FAILED = "**failed**"

Out = Annotated[Path, typer.Option(help="the Markdown file to write")]


@app.command()
def validation(
    since: Annotated[str, typer.Option(metavar="REV", help="the concepts that changed since it are judged")],
    out: Out,
    profile: ProfileName = DEFAULT_PROFILE,
) -> None:
    """Judge the concepts that changed since a revision, and write a table of the findings."""
    with command(as_json=False):
        from components.files import write_text
        from components.settings import load_profile, project_root
        from flows.changes import changes_since
        from flows.start import fetch_data

        root, settings = project_root(), load_profile(profile)
        changes = changes_since(root, since, profile)
        rows: list[dict[str, Any]] = []
        for name, change in changes.concepts.items():
            if change == "removed":
                rows.append({"name": name, "change": change, "verdict": "removed", "findings": []})
                continue
            fetch_data(root, name)
            rows.append({"name": name, "change": change, **_judged(root, name, settings.concepts)})
        write_text(out, validation_table(rows, changes.since, changes.settings))
        stderr.print(f"{len(rows)} concepts judged, see {out}", highlight=False)
        if any(row["verdict"] == "not valid" for row in rows):
            raise typer.Exit(FAILED)


def _judged(root: Path, name: str, settings: Any) -> dict[str, Any]:
    from components.concepts.validation import validate
    from components.errors import InvalidInput

    try:
        report = validate(root / "data" / "concepts" / name, settings, root / ".purecc" / "validation" / name)
    except InvalidInput as error:
        finding = {"field": error.field or "", "problem": error.problem, "mend": error.mend or ""}
        return {"verdict": "not valid", "findings": [{"kind": "error", **finding}]}
    facts = report.to_json()
    findings = [{"kind": "error", **each} for each in facts["errors"]]
    findings += [{"kind": "warning", **each} for each in facts["warnings"]]
    return {"verdict": "valid" if facts["success"] else "not valid", "findings": findings}


def validation_table(rows: Sequence[dict[str, Any]], since: str, settings: Sequence[str]) -> str:
    """The comment of a data pull request."""
    lines = ["### Concepts that this changes", ""]
    if not rows:
        lines += [f"No concept differs from `{since[:12]}`."]
    else:
        lines += ["| concept | change | verdict | errors | warnings |", "|---|---|---|---|---|"]
        for row in rows:
            count = {kind: sum(each["kind"] == kind for each in row["findings"]) for kind in ("error", "warning")}
            cells = (row["name"], row["change"], row["verdict"], str(count["error"]), str(count["warning"]))
            lines.append(_row(cells))
        findings = [(row["name"], each) for row in rows for each in row["findings"]]
        if findings:
            lines += ["", "| concept | | where | problem | mend |", "|---|---|---|---|---|"]
            for name, each in findings:
                lines.append(_row((name, each["kind"], str(each["field"]), str(each["problem"]), str(each["mend"]))))
    if settings:
        lines += ["", f"The profile changes too ({', '.join(settings)}): every concept will be looked at."]
    return "\n".join(lines) + "\n"


@app.command()
def gates(name: Name, version: Annotated[int, typer.Argument(min=1)], out: Out) -> None:
    """Write the gate table of a registered version; fails where its gates refuse it."""
    with command(as_json=False):
        from components.files import write_text
        from components.settings import project_root
        from components.tracking import registry
        from components.tracking.store import open_store

        found = registry.version(open_store(project_root()), name, version)
        write_text(out, gate_table(name, version, found.status, json.loads(found.tags.get("gate/table", "[]"))))
        stderr.print(f"{name} version {version}: {found.status}, see {out}", highlight=False)
        if found.status != "passed":
            raise typer.Exit(FAILED)


def gate_table(name: str, version: int, status: str, results: Sequence[dict[str, Any]]) -> str:
    """What the one who approves a promotion looks at."""
    lines = [f"### {name} version {version}: gates {status}", ""]
    lines += ["| metric | value | bound | champion | |", "|---|---|---|---|---|"]
    for gate in results:
        value, champion = ("-" if gate[key] is None else f"{gate[key]:.4g}" for key in ("value", "champion"))
        verdict = "passed" if gate["passed"] else _FAILED
        lines.append(_row((gate["metric"], value, gate["bound"], champion, verdict)))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    """Text that neither ends its cell nor becomes markup or a mention: it may come from a stranger's pull request."""
    if text == _FAILED:
        return text
    flat = " ".join(text.replace("&", "&amp;").split())
    for character in "\\|<`@[]*_!":
        flat = flat.replace(character, f"&#{ord(character)};")
    return flat


if __name__ == "__main__":
    app()
