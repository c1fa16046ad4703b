"""Does the data stand as `data.dvc` says, and does the DVC remote hold it? Answers for a person, as sentences."""

from __future__ import annotations

from pathlib import Path

import yaml


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


def data_problem(root: Path) -> str | None:
    """What sets `data/` apart from `data.dvc`; None if nothing does."""
    _, problem = _pointer(root)
    if problem:
        return problem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            changes = repo.data_status(granular=True)["uncommitted"]
    except DvcException as error:
        return str(error)
    found = {kind: sorted(path for path in paths if path != "data/") for kind, paths in changes.items()}
    if not (root / "data").is_dir():
        return "data/ is not there"
    named = [f"{kind} {path}" for kind in sorted(found) for path in found[kind]]
    if not named:
        return None if not any(changes.values()) else "data/ differs from data.dvc"
    rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"data/ differs from data.dvc: {', '.join(named[:3])}{rest}"


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
            return f"{store.path}: unreachable, or without the data that data.dvc names"
    except (DvcException, ImportError, OSError) as error:
        return str(error).splitlines()[0]
