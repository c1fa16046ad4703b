"""Atomic writes and folder manifests: nothing half-written ever stands under a final name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.errors import IntegrityError

MANIFEST = "SHA256SUMS"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`, on error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, one trailing newline."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `path`; on success it gets a manifest and takes the name `path`.

    On error it is removed. An existing folder under that name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        write_manifest(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".retired", dir=path.parent))
            path.rename(retired / "old")
            temporary.rename(path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.rename(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_digests(folder: Path) -> dict[str, str]:
    """Relative path -> hex SHA-256 of every file below `folder`, but for the manifest itself."""
    return {
        file.relative_to(folder).as_posix(): sha256_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST
    }


def write_manifest(folder: Path) -> str:
    """Write SHA256SUMS (the format of `sha256sum -c`) and return the folder's digest: the SHA-256 of that file."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(folder_digests(folder).items())]
    write_text(folder / MANIFEST, "".join(lines))
    return sha256_file(folder / MANIFEST)


def read_manifest(folder: Path) -> Mapping[str, str]:
    """Relative path -> digest, as the folder's manifest states it.

    Raises:
        IntegrityError: no manifest, or a line that is none.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise IntegrityError(f"{manifest}: missing; the folder is incomplete, make it again")
    stated: dict[str, str] = {}
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{manifest}: not text: {error}") from error
    for number, line in enumerate(lines, 1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise IntegrityError(f"{manifest}: line {number} is not 'digest  name': {line[:80]!r}")
        stated[name] = digest
    return stated


def verify_manifest(folder: Path, *, foreign: bool = False) -> str:
    """Check every file against the manifest and return the folder's digest.

    Args:
        foreign: somebody else made the folder: links, pipes and devices in it are refused, and none is opened. A link
            leads out of it, to a file without an end, or to one that changes after this.

    Raises:
        IntegrityError: a file is missing, added or changed; each is named.
    """
    if foreign:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                name = path.relative_to(folder).as_posix()
                raise IntegrityError(f"{folder}: {name} is a link, a pipe or a device; copy the file itself there")
    stated, found = read_manifest(folder), folder_digests(folder)
    problems = [f"missing {name}" for name in sorted(stated.keys() - found.keys())]
    problems += [f"not in the manifest: {name}" for name in sorted(found.keys() - stated.keys())]
    problems += [f"changed {name}" for name in sorted(stated.keys() & found.keys()) if stated[name] != found[name]]
    if problems:
        raise IntegrityError(f"{folder}: {'; '.join(problems)}")
    return sha256_file(folder / MANIFEST)
