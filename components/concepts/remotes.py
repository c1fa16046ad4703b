"""Does the data stand as `data.dvc` says, and does the DVC remote hold it? Answers for a person, as sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from components.secrets import redact


def _pointer(root: Path) -> tuple[str, str | None]:
    """The digest that data.dvc states, and the problem if it states none."""
    file = root / "data.dvc"
    try:
        digest = yaml.safe_load(file.read_text(encoding="utf-8"))["outs"][0]["md5"]
    except FileNotFoundError:
        return "", f"{file}: missing"
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        return "", f"{file}: not a DVC pointer: {error}"
    return str(digest), None


@dataclass(frozen=True)
class DataState:
    """How `data/` stands against `data.dvc`.

    Attributes:
        problem: what sets them apart; None if nothing does.
        not_pulled: concepts of data.dvc whose folder is not here at all: nobody asked for them yet.
    """

    problem: str | None
    not_pulled: tuple[str, ...] = ()


def data_state(root: Path) -> DataState:
    """Compare `data/` with `data.dvc`; a concept that is wholly absent is not broken, only not pulled."""
    _, problem = _pointer(root)
    if problem:
        return DataState(problem)
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            changes = repo.data_status(granular=True)["uncommitted"]
    except DvcException as error:
        return DataState(redact(str(error)))
    if not (root / "data").is_dir():
        return DataState("data/ is not there")
    absent: set[str] = set()
    named: list[str] = []
    for kind in sorted(changes):
        for path in sorted(changes[kind]):
            concept = _concept_of(path)
            if kind == "deleted" and concept and not (root / "data" / "concepts" / concept).exists():
                absent.add(concept)
            elif path.rstrip("/") not in ("data", "data/concepts"):
                named.append(f"{kind} {path}")
    if not named:
        known = bool(absent) or not any(changes.values())
        return DataState(None if known else "data/ differs from data.dvc", tuple(sorted(absent)))
    rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return DataState(f"data/ differs from data.dvc: {', '.join(named[:3])}{rest}", tuple(sorted(absent)))


def _concept_of(path: str) -> str | None:
    """The concept that a path of DVC belongs to: `data/concepts/star/01.png` -> `star`."""
    parts = path.split("/")
    return parts[2] if len(parts) > 2 and parts[:2] == ["data", "concepts"] and parts[2] else None


def remote_problem(root: Path) -> str | None:
    """Why the data of `data.dvc` cannot be pulled from the default DVC remote; None if it can."""
    digest, problem = _pointer(root)
    if problem:
        return problem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            store = repo.cloud.get_remote_odb(command="status")
            if store.exists(digest):
                return None
            return redact(f"{store.path}: unreachable, or without the data that data.dvc names")
    except (DvcException, ImportError, OSError) as error:
        return redact(str(error).splitlines()[0])
