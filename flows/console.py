"""What a person and what a machine sees: results on stdout, progress and errors on stderr, exit codes.

Exit codes: 0 done; 1 the work ran and was refused or failed; 2 wrong use; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from components import disk
from components.errors import InvalidInput, PureCCError
from components.secrets import RedactingFilter, redact, redact_values

stdout = Console()
stderr = Console(stderr=True)

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

documents = 0  # JSON documents on stdout: one command prints one


class WrongUse(PureCCError):
    """What was asked for does not exist or is not well-formed: exit code 2."""


@contextlib.contextmanager
def arguments() -> Iterator[None]:
    """Inside, invalid input is the caller's: names that do not exist, malformed settings."""
    try:
        yield
    except InvalidInput as error:
        raise WrongUse(str(error)) from error


class Output:
    """Where a command puts its result: one JSON document, or text for a person.

    Made before stdout is led elsewhere: what it prints, and that alone, goes there.
    """

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.written = False
        self._stream = sys.stdout

    def to_stdout(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, what is printed belongs to the result."""
        return contextlib.redirect_stdout(self._stream)

    def result(self, value: Any, show: Callable[[], None]) -> None:
        """Print the result: `value` for machines, `show()` for people."""
        global documents
        self.written = True
        with self.to_stdout():
            if self.as_json:
                documents += 1
                sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False, default=str) + "\n")
                sys.stdout.flush()
            else:
                show()


def finite(value: Any) -> Any:
    """The value with every number that JSON has no word for replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


@contextlib.contextmanager
def command(as_json: bool) -> Iterator[Output]:
    """The frame of every command: errors become a message (or JSON) and an exit code, never a traceback.

    stdout holds the result and nothing else: what libraries print there goes to stderr.
    """
    set_up_logging()
    output = Output(as_json)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield output
    except (PureCCError, KeyboardInterrupt, OSError) as error:
        raise typer.Exit(report(error, output)) from error
    except (typer.Exit, SystemExit):
        raise
    except Exception as error:  # the last frame: a person gets a message, and a file with the rest
        raise typer.Exit(report(error, output)) from error


def report(error: BaseException, output: Output) -> int:
    """Print an error and return its exit code."""
    code, facts = _facts(error)
    facts = redact_values(facts)
    if output.as_json and not output.written:
        public = {key: value for key, value in facts.items() if key != "title"}
        output.result({"status": "error", "error": public}, lambda: None)
    stderr.print(f"[bold red]{escape(facts['title'])}[/] {escape(facts['message'])}", soft_wrap=True, highlight=False)
    for key in ("file", "field", "mend", "details"):
        if facts.get(key):
            stderr.print(f"  {key + ':':<8} {escape(str(facts[key]))}", soft_wrap=True, highlight=False)
    if os.environ.get("PURECC_DEBUG"):
        stderr.print_exception()
    return code


def _facts(error: BaseException) -> tuple[int, dict[str, Any]]:
    if isinstance(error, KeyboardInterrupt):
        mend = "run the same command again: finished stages are kept, a training goes on from its last checkpoint"
        return INTERRUPTED, {"title": "interrupted:", "kind": "Interrupted", "message": "stopped", "mend": mend}
    from components.tracking.store import explained

    error = explained(error) or error
    kind = type(error).__name__
    code = FAILED
    if isinstance(error, WrongUse):
        code = WRONG_USE
        if isinstance(error.__cause__, InvalidInput):
            error = error.__cause__
    if isinstance(error, InvalidInput):
        where = {"file": None if error.file is None else str(error.file), "field": error.field, "mend": error.mend}
        return code, {"title": "error:", "kind": kind, "message": error.problem, **where}
    if isinstance(error, PureCCError | OSError) and not disk.is_full(error):
        return code, {"title": "error:", "kind": kind, "message": str(error)}
    place = disk.full_place(error, _places())
    if disk.is_full(error) or place is not None:  # where it is full, an error that nobody expected comes of it
        mend = "make space, then run the same command again: it goes on where it stopped"
        facts = {"file": str(place or _root()), "mend": mend}
        return code, {"title": "error:", "kind": "DiskFull", "message": f"the disk is full: {error}", **facts}
    details = _keep_traceback(error)
    return code, {"title": "internal error:", "kind": kind, "message": f"{kind}: {error}", "details": details}


def _root() -> Path | None:
    from components.settings import project_root

    with contextlib.suppress(PureCCError, OSError):
        return project_root()
    return None


def _places() -> list[Path]:
    """Where a command writes."""
    root = _root()
    below = (
        "mlruns",
        "mlruns/artifacts",
        ".purecc/artifacts",
        ".purecc/work",
        ".purecc/reports",
        ".purecc",
        "data",
        "",
    )
    return [*(root / name for name in below if root is not None), Path(tempfile.gettempdir())]


def _keep_traceback(error: BaseException) -> str | None:
    from components.settings import project_root

    with contextlib.suppress(PureCCError, OSError):
        folder = project_root() / ".purecc" / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        file.write_text(redact("".join(traceback.format_exception(error))), encoding="utf-8")
        return str(file)
    return None


def set_up_logging() -> None:
    """Our own log on stderr: warnings, or everything with PURECC_LOG=INFO or DEBUG."""
    handler = RichHandler(console=stderr, show_path=False, show_time=False, markup=False, rich_tracebacks=False)
    level = os.environ.get("PURECC_LOG", "WARNING").upper()
    handler.addFilter(RedactingFilter())
    handler.setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")
    for name in ("components", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel("INFO")
        logger.propagate = False
        logger.handlers = [handler]


def relative(path: Path | str, root: Path) -> str:
    """A path as short as it can be said from the project's folder."""
    with contextlib.suppress(ValueError):
        return str(Path(path).relative_to(root))
    return str(path)
