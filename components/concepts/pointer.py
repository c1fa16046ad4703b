"""The DVC pointer `data.dvc` and the objects it names, read from the cache or the remote and hashed by us."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.scm import RevError, SCMError

from components.errors import InvalidInput

logger = logging.getLogger(__name__)

for _library in ("dvc", "dvc_data", "dvc_objects"):
    logging.getLogger(_library).setLevel(logging.WARNING)  # at INFO they write to stdout, which is ours

DATA = "data"
POINTER = f"{DATA}.dvc"


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def read_pointer(root: Path) -> str:
    """The digest of `data/` that the working tree's pointer states.

    Raises:
        InvalidInput: no pointer, or none to a folder.
    """
    file = root / POINTER
    if not file.is_file():
        mend = f"record the data: dvc add {DATA}"
        raise InvalidInput("no pointer to the data", file=file, mend=mend)
    return _parse_pointer(file.read_text(encoding="utf-8"), str(file))


def pointer_at(root: Path, rev: str) -> str | None:
    """The digest that the pointer of a git revision states, None if the revision has no pointer.

    Raises:
        InvalidInput: no such revision, or no pointer to a folder.
    """
    try:
        with told(root):
            system = DVCFileSystem(str(root), rev=rev)
            text = system.read_text(POINTER, encoding="utf-8")
    except FileNotFoundError:
        return None
    return _parse_pointer(text, f"{POINTER} of {rev}")


def _parse_pointer(text: str, where: str) -> str:
    try:
        md5 = str(yaml.safe_load(text)["outs"][0]["md5"])
    except (yaml.YAMLError, LookupError, TypeError) as error:
        mend = "take it back from git, or record the data again"
        raise InvalidInput("not a DVC pointer", file=where, field="outs", mend=mend) from error
    if not re.fullmatch(r"[0-9a-f]{32}\.dir", md5):
        mend = f"it points to a folder: record the data again with dvc add {DATA}"
        raise InvalidInput(f"{md5[:80]!r} is no digest of a folder", file=where, field="md5", mend=mend)
    return md5


def listing(root: Path, md5: str) -> dict[str, str]:
    """Relative path below `data/` -> md5, from the folder object `md5` in the cache or in the remote.

    Raises:
        InvalidInput: it is in neither, or damaged.
    """
    with open_repo(root) as repo:
        content = cached(repo, md5)
        if content is None:
            store = repo.cloud.get_remote_odb(command="fetch")
            with contextlib.suppress(FileNotFoundError):
                content = store.fs.cat_file(store.oid_to_path(md5))
    if content is None:
        mend = "push it from where it was recorded: dvc push"
        raise InvalidInput(
            f"the data {md5} is neither in the cache nor in the remote", file=root / POINTER, field="md5", mend=mend
        )
    if f"{md5_of(content)}.dir" != md5:
        raise InvalidInput(
            f"the remote's object {md5} is damaged", file=root / POINTER, field="md5", mend="push it again: dvc push"
        )
    return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}


def cached(repo: Any, oid: str) -> bytes | None:
    """The bytes of an object in DVC's cache, None if it is not there or damaged."""
    path = Path(repo.cache.local.oid_to_path(oid))
    if not path.is_file():
        return None
    content = path.read_bytes()
    return content if md5_of(content) == oid.removesuffix(".dir") else None


def drop_damaged(repo: Any, oids: Iterable[str]) -> None:
    """Remove objects from the cache whose bytes do not match their name: DVC would hand them out."""
    for oid in oids:
        path = Path(repo.cache.local.oid_to_path(oid))
        if path.is_file() and cached(repo, oid) is None:
            logger.warning("the DVC cache holds a damaged object, removed: %s", path)
            path.unlink()


@contextlib.contextmanager
def open_repo(root: Path) -> Iterator[Any]:
    """The DVC project at `root`, with DVC's errors as ours."""
    with told(root):
        # Without git (an unpacked archive, an image) DVC refuses to work unless it is told so
        in_git = any((folder / ".git").exists() for folder in (root.resolve(), *root.resolve().parents))
        config = None if in_git else {"core": {"no_scm": True}}
        with Repo(str(root), config=config, _wait_for_lock=True) as repo:
            yield repo


@contextlib.contextmanager
def told(root: Path) -> Iterator[None]:
    """DVC's errors as ours, with the mend."""
    try:
        yield
    except (RevError, SCMError) as error:
        mend = "check the revision; in a shallow clone fetch it first: git fetch --unshallow"
        raise InvalidInput(str(error), file=root, field="revision", mend=mend) from error
    except NotDvcRepoError as error:
        mend = "make it one with dvc init (needs git), or dvc init --no-scm; nothing was changed"
        raise InvalidInput("no DVC project, so data cannot be versioned", file=root, field="DVC", mend=mend) from error
    except DvcException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        mend = "see what differs with dvc status, and what the remote is with dvc remote list"
        raise InvalidInput(" ".join(lines) or type(error).__name__, file=root, field="DVC", mend=mend) from error
