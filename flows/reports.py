"""Finding and opening the reports of runs."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from components.errors import InvalidInput
from components.tracking.runs import fetch_report
from components.tracking.store import is_empty, open_store


def find_report(root: Path, run: str | None) -> Path:
    """The report of a run, of a concept's latest run, or of the latest run of all.

    A report that is not in this project's folder is fetched from MLflow.

    Raises:
        InvalidInput: there is none.
    """
    folder = root / ".purecc" / "reports"
    if run is None or (folder / run).is_dir():
        found = sorted(
            folder.glob("*/*.html" if run is None else f"{run}/*.html"), key=lambda file: file.stat().st_mtime
        )
        if found:
            return found[-1]
        raise InvalidInput("there is no report yet", mend="make one: purecc demo")
    found = [file for file in folder.glob("*/*.html") if file.stem == run]
    if found:
        return found[0]
    fetched = None if is_empty(root) else fetch_report(open_store(root), run, folder)
    if fetched is None:
        known = ", ".join(sorted(path.name for path in folder.glob("*"))) or "none"
        raise InvalidInput(f"no report of {run!r}", mend=f"give a run id, or a concept with reports: {known}")
    return fetched


def open_report(path: Path) -> bool:
    """Open a page in the browser where there is a desktop to show it; says whether it did."""
    desktop = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return desktop and webbrowser.open(path.as_uri())
