"""The data docs of a validation: great-expectations' pages, made fit to be kept with every run and read anywhere."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import great_expectations as gx
from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext
from great_expectations.data_context.types.base import ProgressBarsConfig

from components.errors import InvalidInput

_SITE = "concept"


def new_context(docs_dir: Path) -> EphemeralDataContext:
    """A context whose one site is built into `docs_dir`, which is replaced.

    Raises:
        InvalidInput: the folder holds something else.
    """
    if docs_dir.is_dir() and any(docs_dir.iterdir()) and not (docs_dir / "expectations").is_dir():
        raise InvalidInput("the folder holds other things than data docs", file=docs_dir, mend="give an empty folder")
    shutil.rmtree(docs_dir, ignore_errors=True)
    docs_dir.mkdir(parents=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    for site, config in list((context.variables.data_docs_sites or {}).items()):
        # An ephemeral context comes with a site in a folder of the system's temporary ones, and leaves it there
        context.delete_data_docs_site(site)
        shutil.rmtree(config["store_backend"]["base_directory"], ignore_errors=True)
    context.add_data_docs_site(
        _SITE,
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs_dir.resolve()),
            },
        },
    )
    return context


def build(context: EphemeralDataContext, docs_dir: Path, summary: Mapping[str, str]) -> Path:
    """Build the site; returns its first page.

    Args:
        summary: suite -> what became of it, for the first page.
    """
    context.build_data_docs(site_names=[_SITE])
    _drop_what_no_page_names(docs_dir)
    index = docs_dir / "index.html"
    _put_first(index, _list_of_pages(docs_dir, summary))
    return index


def _drop_what_no_page_names(docs_dir: Path) -> None:
    """A site comes with 4 MB of animations and fonts: its pages show next to none of them, and every run keeps them."""
    pages = "".join(
        file.read_text(encoding="utf-8") for suffix in ("html", "css") for file in docs_dir.rglob(f"*.{suffix}")
    )
    for path in sorted((docs_dir / "static").rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(docs_dir).as_posix() not in pages:
            path.unlink()


def _list_of_pages(docs_dir: Path, summary: Mapping[str, str]) -> str:
    """The site's own list is drawn by scripts from the network, and is empty where there is none."""
    items = []
    for suite, outcome in summary.items():
        (page,) = (docs_dir / "validations" / suite).rglob("*.html")
        link = os.path.relpath(page, docs_dir)
        items.append(f'<li><a href="{html.escape(link)}">{html.escape(suite)}</a>: {html.escape(outcome)}</li>')
    return f'<ul id="suites" style="margin: 1em; font-family: sans-serif">{"".join(items)}</ul>'


def _put_first(page: Path, markup: str) -> None:
    text = page.read_text(encoding="utf-8")
    head, body, rest = text.partition("<body>")
    if not body:
        raise RuntimeError(f"great-expectations writes another first page than this module knows: {page}")
    page.write_text(f"{head}{body}\n{markup}{rest}", encoding="utf-8")
