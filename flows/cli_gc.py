"""`purecc gc`: removes registered adapters that nothing refers to."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.cli_options import Json
from flows.console import FAILED, arguments, command, stdout


def gc(
    name: Annotated[str | None, typer.Argument(help="a concept; default: all")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="only this version of NAME")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove; without it, only say what would go")] = False,
    as_json: Json = False,
) -> None:
    """Remove versions that no alias or bundle refers to, and what cut-off runs left; by default only say which."""
    from components.errors import InvalidInput
    from components.settings import project_root
    from components.tracking.store import is_empty

    with command(as_json) as output:
        with arguments():
            root = project_root()
            if version is not None and name is None:
                raise InvalidInput("--version needs the concept's name")
        found: list[Any] = []
        removed: list[Any] = []
        if not is_empty(root):
            from components.tracking import garbage, registry
            from flows.locks import open_shared_store

            store = open_shared_store(root)
            with arguments():
                if name is not None:
                    registry.require_registered(store, name)
                if name is not None and version is not None:
                    registry.version(store, name, version)
            if name is not None and version is not None:
                garbage.require_unreferred(store, name, version)
            found = [each for each in garbage.find(store, [name] if name else None) if version in (None, each.version)]
            removed = garbage.remove(store, found) if yes else []
        facts = {
            "dry_run": not yes,
            "found": [each.to_json() for each in found],
            "removed": [each.to_json() for each in removed],
        }
        output.result(facts, lambda: _show(facts))
        if yes and len(removed) < len(found):
            raise typer.Exit(FAILED)


def _show(facts: dict[str, Any]) -> None:
    verb = "would go" if facts["dry_run"] else "is gone"
    rows = facts["found"] if facts["dry_run"] else facts["removed"]
    for row in rows:
        what = f"version {row['version']}" if row["version"] else f"model {row['model']}"
        size = f", {row['size'] / 2**20:.1f} MiB" if row["size"] is not None else ""
        stdout.print(escape(f"{row['name']} {what} {verb}{size}: {row['reason']}"), soft_wrap=True)
    if not rows:
        stdout.print("nothing to remove: everything is referred to")
    elif facts["dry_run"]:
        stdout.print("nothing was touched; with --yes they are removed", style="dim")
