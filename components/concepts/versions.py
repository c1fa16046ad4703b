"""Versions of the concepts: one DVC pointer, `data.dvc`, for the whole of `data/`.

DVC stores and moves the bytes. Whether they are the right ones is decided here, by hashes computed from the files
themselves: DVC trusts the objects of its cache without reading them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvc.repo import Repo

from components.concepts.concept import fingerprint
from components.concepts.paths import file_problem
from components.concepts.pointer import (
    DATA,
    POINTER,
    cached,
    drop_damaged,
    listing,
    open_repo,
    pointer_at,
    read_pointer,
    told,
)
from components.concepts.texts import NAME_PATTERN
from components.errors import InvalidInput
from components.files import digest_of, write_text

CONCEPTS = "concepts"
Change = Literal["added", "modified", "removed"]


@dataclass(frozen=True)
class DataVersion:
    """Which data a concept was read from.

    Attributes:
        md5: DVC's digest of the whole of `data/`, as the pointer states it.
        pointer: the pointer's file name.
        fingerprint: SHA-256 of the concept's files (`concept.fingerprint`); None for the whole of `data/`.
    """

    md5: str
    pointer: str = POINTER
    fingerprint: str | None = None


def init(root: Path, remote: str = "infra/dvc-remote", *, remote_name: str = "embedded") -> None:
    """Make `root`, a git repository, a DVC project whose default remote is a folder inside it; safe to repeat."""
    if not (root / ".dvc" / "config").is_file():
        with told(root):
            Repo.init(str(root)).close()
    (root / remote).mkdir(parents=True, exist_ok=True)
    with open_repo(root) as repo, repo.config.edit("repo") as config:
        config["core"].update(analytics=False, check_update=False, remote=remote_name)
        # Read from the working folder, written relative to .dvc/
        config["remote"][remote_name] = {"url": os.path.relpath(root / remote)}


def verify_matches_pointer(root: Path, name: str) -> DataVersion:
    """Check every visible file of the concept `data/concepts/<name>` against `data.dvc`.

    Raises:
        InvalidInput: a file is changed, missing or not recorded, or the concept is not in `data.dvc`; the mend says how
            to bring the recorded version back and how to record the present one.
    """
    folder = _folder(root, name)
    md5 = read_pointer(root)
    recorded = _of_concept(listing(root, md5), name)
    if not recorded:
        mend = f"record it: dvc add {DATA} && dvc push && git add {POINTER}"
        raise InvalidInput(f"the concept is not recorded in {POINTER}", file=root / POINTER, field=name, mend=mend)
    if not folder.is_dir():
        raise InvalidInput("the concept's data is not here", file=folder, mend=f"dvc pull {DATA}/{CONCEPTS}/{name}")
    found = _hashes(folder)
    problems = [(key, "is missing") for key in sorted(recorded.keys() - found.keys())]
    problems += [(key, "is not recorded") for key in sorted(found.keys() - recorded.keys())]
    changed = [key for key in sorted(recorded.keys() & found.keys()) if recorded[key] != found[key]]
    problems += [(key, f"is changed: md5 {found[key]}, recorded {recorded[key]}") for key in changed]
    if problems:
        others = f"; {len(problems) - 1} more files differ" if len(problems) > 1 else ""
        raise InvalidInput(
            f"{problems[0][1]} (against {POINTER}){others}",
            file=folder / problems[0][0],
            field="md5",
            mend=f"record the change with dvc add {DATA}, or take it back with dvc checkout {DATA}/{CONCEPTS}/{name}",
        )
    return DataVersion(md5, fingerprint=fingerprint(folder))


def add(root: Path, *, removed: Collection[str] = ()) -> DataVersion:
    """Record `data/` in `data.dvc` and the cache.

    Concepts that `data.dvc` names and that are not here (a fresh clone before its first pull) are pulled first, but
    for those in `removed`: what is merely absent is not deleted from the record.

    Raises:
        InvalidInput: no DVC project, no data, or DVC recorded other hashes than the files have.
    """
    if not (root / DATA).is_dir():
        raise InvalidInput("there is no data to record", file=root / DATA, mend="add a concept first")
    if (root / POINTER).is_file():
        for name in _names(listing(root, read_pointer(root))):
            if name not in removed and not _folder(root, name).exists():
                pull(root, name)
    found = _hashes(root / DATA)
    with open_repo(root) as repo:
        drop_damaged(repo, found.values())
        repo.add(str(root / DATA))
    md5 = read_pointer(root)
    recorded = listing(root, md5)
    for key, value in found.items():
        if recorded.get(key) != value:
            raise InvalidInput(
                f"DVC recorded {recorded.get(key)} for a file whose md5 is {value}",
                file=root / DATA / key,
                field="md5",
                mend="touch the file and record it again",
            )
    return DataVersion(md5)


def require_project(root: Path) -> None:
    """Raise InvalidInput where data cannot be recorded: no DVC project, or one that cannot be opened."""
    with open_repo(root):
        pass


def record_new(root: Path, folder: Path) -> DataVersion:
    """Record a concept folder that has just appeared; if that fails it disappears again, as if never made.

    Raises:
        InvalidInput: as `add`; `data/` and `data.dvc` are what they were before the folder appeared.
    """
    pointer = root / POINTER
    before = pointer.read_text(encoding="utf-8") if pointer.is_file() else None
    try:
        return add(root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, root / DATA):
            with contextlib.suppress(OSError):  # not empty: other concepts are there
                parent.rmdir()
        if before is None:
            pointer.unlink(missing_ok=True)
        elif pointer.read_text(encoding="utf-8") != before:
            write_text(pointer, before)
        raise


def push(root: Path) -> int:
    """Upload what `data.dvc` names to the default remote; returns how many files went.

    Raises:
        InvalidInput: the cache lacks or damaged an object, or the remote does not hold all of them afterwards.
    """
    md5 = read_pointer(root)
    recorded = {**listing(root, md5), ".": md5}
    with open_repo(root) as repo:
        for key, oid in recorded.items():
            if cached(repo, oid) is None and not repo.cloud.get_remote_odb(command="push").exists(oid):
                mend = f"record the data again: dvc add {DATA}"
                raise InvalidInput("the cache holds no sound copy", file=root / DATA / key, field=oid, mend=mend)
        count = int(repo.push(targets=[str(root / POINTER)]))
        store = repo.cloud.get_remote_odb(command="push")
        missing = [key for key, oid in recorded.items() if not store.exists(oid)]
    if missing:
        raise InvalidInput(f"{len(missing)} files did not reach the remote", file=root / DATA / missing[0])
    return count


def pull(root: Path, name: str | None = None) -> list[str]:
    """Bring the data of one concept, or of all, as `data.dvc` names it; returns the names of those concepts, verified.

    Objects of the cache whose bytes do not match their name are removed first and fetched again.

    Raises:
        InvalidInput: the remote lacks the data or gives other bytes, or a changed file would be overwritten.
    """
    recorded = listing(root, read_pointer(root))
    wanted = recorded if name is None else _of_concept(recorded, name)
    if not wanted:
        known = ", ".join(_names(recorded)) or "none"
        raise InvalidInput(f"no concept {name!r} in {POINTER}", file=root / POINTER, mend=f"known concepts: {known}")
    folder, target = (root / DATA, root / POINTER) if name is None else (_folder(root, name),) * 2
    with open_repo(root) as repo:
        drop_damaged(repo, wanted.values())
        repo.fetch(targets=[str(target)])
        # A checkout that fails half-way removes the folder with all that it holds, so nothing may be lacking before it
        for key, oid in wanted.items():
            if cached(repo, oid) is None:
                mend = "the remote lacks it or holds other bytes: push it again from where it was recorded"
                raise InvalidInput("no sound copy to be had", file=folder / key, field=oid, mend=mend)
        for key, oid in (_hashes(folder) if folder.is_dir() else {}).items():
            if wanted.get(key) != oid and cached(repo, oid) is None:
                mend = f"record it with dvc add {DATA}, or remove the file, then pull again"
                raise InvalidInput("would be lost: recorded nowhere", file=folder / key, field="md5", mend=mend)
        repo.checkout(targets=[str(target)])
    names = _names(recorded) if name is None else [name]
    for each in names:
        verify_matches_pointer(root, each)
    return names


def per_concept_digests(root: Path, rev: str | None = None) -> dict[str, str]:
    """Concept -> digest of its recorded files, as the pointer of a git revision states it (None: the working tree).

    A revision without `data.dvc` has no concepts.

    Raises:
        InvalidInput: no such revision (a shallow clone lacks older ones), or its data is nowhere to be had.
    """
    md5 = read_pointer(root) if rev is None else pointer_at(root, rev)
    if md5 is None:
        return {}
    recorded = listing(root, md5)
    return {name: digest_of(_of_concept(recorded, name)) for name in _names(recorded)}


def changes(root: Path, since: str, until: str | None = None) -> dict[str, Change]:
    """Concept -> what became of it between two git revisions; unchanged ones are left out (None: the working tree)."""
    before, after = per_concept_digests(root, since), per_concept_digests(root, until)
    found: dict[str, Change] = {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found[name] = "added" if name not in before else "removed" if name not in after else "modified"
    return found


def _folder(root: Path, name: str) -> Path:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(f"{name[:80]!r} is no name of a concept", field="name", mend="see purecc concepts list")
    return root / DATA / CONCEPTS / name


def _names(recorded: dict[str, str]) -> list[str]:
    parts = (key.split("/") for key in recorded)
    return sorted({part[1] for part in parts if len(part) > 2 and part[0] == CONCEPTS})


def _of_concept(recorded: dict[str, str], name: str) -> dict[str, str]:
    prefix = f"{CONCEPTS}/{name}/"
    found = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if not key.startswith(".")}


def _hashes(folder: Path) -> dict[str, str]:
    """Relative path -> md5 of every file that is not hidden; links are refused."""
    found = {}
    for path in sorted(folder.rglob("*")):
        key = path.relative_to(folder)
        if not any(part.startswith(".") for part in key.parts) and (path.is_symlink() or not path.is_dir()):
            found[key.as_posix()] = _md5_file(path)
    return found


def _md5_file(path: Path) -> str:
    problem = file_problem(path)
    if problem:
        raise InvalidInput(problem[0], file=path, mend=problem[1])
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
