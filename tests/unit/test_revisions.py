"""Revisions in real repositories, whole and shallow."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components import revisions
from components.errors import InvalidInput


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    for number in range(5):
        (folder / "file.txt").write_text(f"text {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", f"commit {number}")
    return folder


@pytest.mark.parametrize("rev", ["HEAD~1", "HEAD~4", "sha"])
def test_a_shallow_clone_fetches_what_it_lacks(origin: Path, tmp_path: Path, rev: str) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", origin.as_uri(), "clone")
    wanted = git(origin, "rev-parse", "HEAD~2" if rev == "sha" else rev)
    found = revisions.resolve(tmp_path / "clone", wanted if rev == "sha" else rev)
    assert found == wanted
    assert revisions.text_at(tmp_path / "clone", found, "file.txt") == git(origin, "show", f"{wanted}:file.txt") + "\n"
    if rev == "sha":  # nothing between was fetched
        assert git(tmp_path / "clone", "rev-list", "--count", "--all") == "1"


@pytest.mark.parametrize("rev", ["nothing", "HEAD~9", "--upload-pack=x", "HEAD:file.txt"])
def test_what_is_no_revision_is_refused(origin: Path, tmp_path: Path, rev: str) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", origin.as_uri(), "clone")
    for folder in (origin, tmp_path / "clone"):
        with pytest.raises(InvalidInput, match="--since"):
            revisions.resolve(folder, rev)


def test_outside_of_git_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a git repository"):
        revisions.resolve(tmp_path, "HEAD")
