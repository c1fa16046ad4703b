"""`purecc concepts`: the concepts of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli_options import DEFAULT_PROFILE, Json, Name, ProfileName, Set
from flows.console import FAILED, arguments, command, finite, relative, stdout

app = typer.Typer(help="The concepts of the project.", no_args_is_help=True, rich_markup_mode=None)

ClassWord = Annotated[str | None, typer.Option("--class-word", help="what the images show, e.g. dog")]
Kind = Annotated[str, typer.Option(help="instance or style")]
ConceptName = Annotated[str | None, typer.Option("--name", help="default: made of the folder's or file's name")]
Text = Annotated[str | None, typer.Option(help="the text of every image, with [V] where the concept is meant")]


def _folder() -> Path:
    from components.settings import project_root

    return project_root() / "data" / "concepts"


@app.command("list")
def list_concepts(as_json: Json = False) -> None:
    """Every concept of the project."""
    with command(as_json) as output:
        from components.concepts.store import summaries

        with arguments():
            folder = _folder()
        found = summaries(folder)
        output.result(found, lambda: _show_list(found))


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """One concept, its images and their texts."""
    with command(as_json) as output:
        from components.concepts import store

        with arguments():
            store.find(_folder(), name)
        facts = store.show(_folder(), name)
        output.result(facts, lambda: _show_concept(facts))


@app.command()
def add(
    name: Name,
    images: Annotated[list[Path], typer.Argument(help="3 to 5 images")],
    class_word: ClassWord = None,
    kind: Kind = "instance",
    text: Text = None,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Make a concept of image files."""
    with command(as_json) as output:
        from components.concepts.store import add_concept

        settings, word = _settings(profile, overrides), _class_word(class_word, kind)
        _require_versions()
        folder = add_concept(
            _folder(),
            name,
            class_word=word,
            images=images,
            settings=settings,
            kind=kind,
            texts=None if text is None else [text] * len(images),
            check=_check(settings),
        )
        _added(folder, output, profile, overrides or [])


@app.command("import")
def import_path(
    path: Annotated[Path, typer.Argument(help="a DreamBooth folder of images, or the released code's CSV")],
    class_word: ClassWord = None,
    name: ConceptName = None,
    kind: Kind = "instance",
    text: Text = None,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Import a folder of photos, or the released code's CSV, as a concept."""
    with command(as_json) as output:
        from components.concepts.importers import import_concept

        settings = _settings(profile, overrides)
        if path.is_dir():
            class_word = _class_word(class_word, kind)
        _require_versions()
        folder = import_concept(
            path,
            _folder(),
            settings=settings,
            class_word=class_word,
            name=name,
            kind=kind,
            texts=text,
            check=_check(settings),
        )
        _added(folder, output, profile, overrides or [])


@app.command()
def validate(name: Name, profile: ProfileName = DEFAULT_PROFILE, overrides: Set = None, as_json: Json = False) -> None:
    """Judge a concept's folder; every finding is shown."""
    with command(as_json) as output:
        from components.concepts.store import find

        with arguments():
            folder = find(_folder(), name)
        settings = _settings(profile, overrides)
        from components.concepts.validation import validate as judge
        from components.settings import project_root

        report = judge(folder, settings, project_root() / ".purecc" / "validation" / name)
        facts = finite(report.to_json())
        output.result(facts, lambda: _show_findings(facts, project_root()))
        if not report.success:
            raise typer.Exit(FAILED)


def _settings(profile: str, overrides: list[str] | None) -> Any:
    from components.settings import load_profile

    with arguments():
        return load_profile(profile, overrides or []).concepts


def _class_word(class_word: str | None, kind: str) -> str:
    from components.errors import InvalidInput

    with arguments():
        if kind not in ("instance", "style"):
            raise InvalidInput(f"{kind!r} is neither instance nor style", field="--kind")
        if class_word is None and kind == "instance":
            raise InvalidInput("missing", field="--class-word", mend="say what the images show, e.g. --class-word dog")
    return class_word or "style"


def _check(settings: Any) -> Any:
    """The full judgement of a folder before it becomes a concept."""

    def check(folder: Path) -> None:
        import tempfile

        from components.concepts.validation import validate as judge

        with tempfile.TemporaryDirectory(prefix="purecc-") as docs:
            judge(folder, settings, Path(docs) / "docs").raise_for_errors()

    return check


def _require_versions() -> None:
    """Before anything is made: a concept that could not be recorded is not added."""
    from components.concepts import versions
    from components.settings import project_root

    versions.require_project(project_root())


def _added(folder: Path, output: Any, profile: str, overrides: list[str]) -> None:
    import shlex

    from components.concepts import store, versions
    from components.settings import project_root

    root = project_root()
    version = versions.record_new(root, folder)
    facts = {**store.show(folder.parent, folder.name), "data": version.md5, "pointer": version.pointer}

    def say() -> None:
        count = len(facts["images"])
        stdout.print(
            f"{escape(folder.name)}: {count} images in {escape(relative(folder, root))}, texts in metadata.jsonl"
        )
        stdout.print(f"data is versioned in {version.pointer}: commit it, and `dvc push` for others")
        given = [] if profile == DEFAULT_PROFILE else ["--profile", profile]
        given += [part for override in overrides for part in ("--set", override)]
        stdout.print(f"next: purecc customize {escape(shlex.join([folder.name, *given]))}", soft_wrap=True)

    output.result(facts, say)


def _show_list(concepts: list[dict[str, Any]]) -> None:
    if not concepts:
        stdout.print("no concepts in data/concepts: `dvc pull` fetches those of the project")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "class", "references", "fingerprint"):
        table.add_column(column)
    for concept in concepts:
        if concept.get("error"):
            table.add_row(escape(concept["name"]), f"[red]{escape(concept['error'])}[/]")
            continue
        cells = [concept["kind"], concept["class_word"], str(concept["references"]), concept["fingerprint"][:12]]
        table.add_row(escape(concept["name"]), *cells)
    stdout.print(table)


def _show_concept(facts: dict[str, Any]) -> None:
    for key in ("name", "kind", "class_word", "license", "source", "fingerprint", "folder"):
        stdout.print(f"{key:12} {escape(str(facts[key]))}", soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("file", "complete", "base", "target"):
        table.add_column(column)
    for image in facts["images"]:
        table.add_row(*(escape(image[key]) for key in ("file", "complete", "base", "target")))
    stdout.print(table)


def _show_findings(facts: dict[str, Any], root: Path) -> None:
    for kind, style in (("errors", "bold red"), ("warnings", "yellow")):
        for finding in facts[kind]:
            where = f"{relative(finding['file'], root)}: {finding['field']}"
            stdout.print(f"[{style}]{kind[:-1]}[/] {escape(where)}: {escape(finding['problem'])}", soft_wrap=True)
            stdout.print(f"  {escape(finding['mend'])}", soft_wrap=True)
    verdict = "valid" if facts["success"] else f"{len(facts['errors'])} errors"
    stdout.print(f"{escape(facts['name'])}: {verdict}, {len(facts['warnings'])} warnings", highlight=False)
    stdout.print(f"data docs: {escape(facts['docs_index'])}", soft_wrap=True, highlight=False)
