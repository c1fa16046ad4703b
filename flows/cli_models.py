"""`purecc models`: the registered adapters."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli_options import Json, Name, PolicyProfile
from flows.console import FAILED, arguments, command, stdout

app = typer.Typer(help="The registered adapters.", no_args_is_help=True, rich_markup_mode=None)

VersionNumber = Annotated[int, typer.Argument(metavar="VERSION", min=1)]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Every registered adapter and its aliases."""
    from components.settings import project_root
    from components.tracking.store import is_empty, open_store

    with command(as_json) as output:
        with arguments():
            root = project_root()
        found: list[dict[str, Any]] = []
        if not is_empty(root):
            from components.tracking import registry

            models = registry.list_models(open_store(root))
            found = [{"name": name, "aliases": aliases} for name, aliases in models.items()]
        output.result(found, lambda: _show_list(found))


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """The versions of an adapter, with their gates."""
    with command(as_json) as output:
        from components.tracking import registry

        store = _store(name)
        facts = {
            "name": name,
            "model": registry.model_name(name),
            "aliases": registry.aliases(store, name),
            "versions": [version.to_json() for version in registry.versions(store, name)],
        }
        output.result(facts, lambda: _show_versions(facts))


@app.command()
def promote(
    name: Name,
    version: VersionNumber,
    reason: Annotated[
        str | None,
        typer.Option(
            help="kept with the version; without one a version that was judged against another champion than the "
            "present one is refused"
        ),
    ] = None,
    profile: PolicyProfile = None,
    as_json: Json = False,
) -> None:
    """Make a version that passed its gates and can be served the champion."""
    with command(as_json) as output:
        from components.tracking import promotion, registry

        store = _store(name)
        with arguments():
            key = _public_key(store, profile, registry.version(store, name, version))
        replaced = promotion.promote(store, name, version, reason=reason or None, public_key=key)
        facts = {"name": name, "champion": version, "replaced": replaced}
        before = f", before it version {replaced}" if replaced else ""
        output.result(facts, lambda: stdout.print(f"{escape(name)}: version {version} is the champion{before}"))


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="kept with the version that is left")] = "no reason was given",
    profile: PolicyProfile = None,
    as_json: Json = False,
) -> None:
    """Give the champion alias back to the previous champion."""
    with command(as_json) as output:
        from components.tracking import promotion

        store = _store(name)
        left, champion = promotion.rollback(store, name, reason, public_key=_public_key_of(store, profile, name))
        facts = {"name": name, "champion": champion, "rolled_back": left}
        message = f"{escape(name)}: version {champion} is the champion again, instead of version {left}"
        output.result(facts, lambda: stdout.print(message))


@app.command()
def verify(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="default: every version with an alias")] = None,
    profile: PolicyProfile = None,
    as_json: Json = False,
) -> None:
    """Check versions: their bytes, reports, data and base, recorded picture and signature; a champion's blessings."""
    with command(as_json) as output:
        from components.tracking import promotion, registry

        store = _store(name)
        if version is not None:
            with arguments():
                registry.version(store, name, version)
        key = _public_key_of(store, profile, name)
        checks = [check.to_json() for check in promotion.verify(store, name, version, public_key=key)]
        facts = {"name": name, "ok": all(check["ok"] for check in checks), "checks": checks}
        output.result(facts, lambda: _show_checks(checks))
        if not facts["ok"]:
            raise typer.Exit(FAILED)


@app.command()
def repair(name: Name, profile: PolicyProfile = None, as_json: Json = False) -> None:
    """Complete or undo a promotion that was cut off; replace a champion that was deleted or whose bytes are gone."""
    with command(as_json) as output:
        from components.tracking import succession

        store = _store(name)
        key = _public_key_of(store, profile, name)
        found = succession.reconcile(store, name, replace_broken=True, public_key=key)
        nothing = {"name": name, "action": "none", "detail": "nothing was wrong"}
        facts = found.to_json() if found else nothing
        output.result(facts, lambda: stdout.print(escape(f"{facts['action']}: {facts['detail']}"), soft_wrap=True))
        if found is not None and found.action == "lost":
            raise typer.Exit(FAILED)


@app.command()
def sign(
    name: Name,
    version: VersionNumber,
    key: Annotated[Path, typer.Option(help="the private key, a PEM file", envvar="PURECC_SIGNING_KEY")],
    as_json: Json = False,
) -> None:
    """Sign the bytes of a version; PURECC_SIGNING_PASSWORD decrypts the key."""
    with command(as_json) as output:
        from components.tracking import registry, signing

        store = _store(name)
        with arguments():
            registry.version(store, name, version)
        with registry.adapter_folder(store, name, version) as folder:
            bundle = signing.sign(folder, key, os.environ.get(signing.PASSWORD))
        registry.set_tags(store, name, version, {signing.TAG: bundle})
        facts = {"name": name, "version": version, "signed": True}
        output.result(facts, lambda: stdout.print(f"{escape(name)}: version {version} is signed"))


def _store(name: str) -> Any:
    """The store, where an adapter of that name is registered."""
    from components.errors import InvalidInput
    from components.settings import project_root
    from components.tracking.store import is_empty
    from flows.locks import open_shared_store

    with arguments():
        root = project_root()
        if is_empty(root):
            raise InvalidInput(f"no adapter of {name!r} is registered", mend="train one first: purecc customize NAME")
        from components.tracking import registry

        store = open_shared_store(root)
        registry.require_registered(store, name)
        return store


def _public_key_of(store: Any, profile: str | None, name: str) -> Path | None:
    """The key that the profile asks for under which the champion, or the newest version, was judged."""
    from components.tracking import registry

    with arguments():
        return _public_key(store, profile, registry.by_alias(store, name) or registry.versions(store, name)[0])


def _public_key(store: Any, profile: str | None, version: Any) -> Path | None:
    """The key that a profile asks for: the one that is named, or that a version says it was judged under."""
    from components.settings import load_profile
    from components.tracking import signing

    stated = version.tags.get("profile/name")
    if profile is None and stated in {file.stem for file in (store.root / "profiles").glob("*.yaml")}:
        profile = stated
    return signing.policy_key(store.root, load_profile(profile).promotion.public_key) if profile else None


def _show_list(models: list[dict[str, Any]]) -> None:
    if not models:
        stdout.print("nothing is registered yet: purecc customize NAME")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "champion", "challenger", "previous"):
        table.add_column(column)
    for model in models:
        cells = [str(model["aliases"].get(alias, "-")) for alias in ("champion", "challenger", "previous")]
        table.add_row(escape(model["name"]), *cells)
    stdout.print(table)


def _show_versions(facts: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("version", "aliases", "gates", "made", "run", "reason"):
        table.add_column(column)
    for version in facts["versions"]:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["created"] / 1000))
        aliases = ", ".join(version["aliases"])
        reason = escape(version["reason"] or "")
        table.add_row(str(version["version"]), aliases, version["status"], made, version["run"] or "", reason)
    stdout.print(table)


def _show_checks(checks: list[dict[str, Any]]) -> None:
    for check in checks:
        mark = "[green]ok[/]" if check["ok"] else "[bold red]no[/]"
        aliases = f" ({', '.join(check['aliases'])})" if check["aliases"] else ""
        stdout.print(f"{mark} version {check['version']}{aliases}: {escape(check['detail'])}", soft_wrap=True)
