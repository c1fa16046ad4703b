"""Revisions of the project's git repository, also in a shallow clone: what is missing is fetched, and nothing more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from components.errors import InvalidInput

_DEEPEN = (1, 10, 100)  # commits more, tried in turn before the whole history is fetched
_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_TIMEOUT = 300


def resolve(root: Path, rev: str) -> str:
    """The commit that a revision names; in a shallow clone it is fetched from the clone's origin if it is not here.

    Raises:
        InvalidInput: not a git repository, or no such revision.
    """
    if rev.startswith("-"):
        raise InvalidInput(f"{rev!r} is no revision", field="--since", mend="give a commit, a branch or a tag")
    found = _commit(root, rev)
    if found is None and _git(root, "rev-parse", "--is-shallow-repository") == "true":
        found = _fetched(root, rev)
    if found is None:
        if _git(root, "rev-parse", "--git-dir") is None:
            raise InvalidInput("not a git repository", file=root, field="--since", mend="run inside a clone")
        raise InvalidInput(
            f"no revision {rev!r}",
            file=root,
            field="--since",
            mend="check its name, or fetch it: git fetch --unshallow",
        )
    return found


def _fetched(root: Path, rev: str) -> str | None:
    remote = (_git(root, "remote") or "origin").splitlines()[0]
    if _SHA.fullmatch(rev):  # a name of its own: no history between is needed
        _git(root, "fetch", "--quiet", "--depth=1", remote, rev)
        if found := _commit(root, rev):
            return found
    for depth in (*(f"--deepen={count}" for count in _DEEPEN), "--unshallow"):
        if _git(root, "fetch", "--quiet", depth, remote) is None:
            return None
        if found := _commit(root, rev):
            return found
    return None


def _commit(root: Path, rev: str) -> str | None:
    return _git(root, "rev-parse", "--quiet", "--verify", "--end-of-options", f"{rev}^{{commit}}")


def text_at(root: Path, rev: str, path: str) -> str | None:
    """A file's text at a revision, None if it has none; `path` is relative to the repository."""
    return _git(root, "show", f"{rev}:{path}", strip=False)


def _git(root: Path, *arguments: str, strip: bool = True) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    text = done.stdout.decode("utf-8", errors="replace")
    return text.strip() if strip else text
