"""The disk full in the middle of a run: said clearly, nothing corrupted, and the run goes on when there is room."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.files import verify_manifest
from components.tracking import promotion, registry
from components.tracking.store import open_store

REPOSITORY = Path(__file__).resolve().parents[3]
NAME = ("customize", "spotted_star", "--profile", "micro", "--set", "seed=1", "--json")
ROOMS = (128 * 1024, 640 * 1024, 2 * 1024 * 1024)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory; `resize` changes how much it holds."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def resize(folder: Path, room: int) -> None:
    used = shutil.disk_usage(folder).used
    subprocess.run(["mount", "-o", f"remount,size={used + room}", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_run_that_finds_no_room_goes_on_when_there_is_some(customized: Any, small_disk: Path, room: int) -> None:
    root = small_disk / "project"
    shutil.copytree(customized.root, root, symlinks=True)
    project = type(customized)(root)
    store = open_store(root)  # the project moved: its paths are rewritten before the disk is full
    resize(small_disk, room)
    done = project.process(*NAME)
    assert done.code == 1, done.stderr
    assert "disk is full" in done.json["error"]["message"], done.stderr
    assert project.servers() == []

    resize(small_disk, 300 * 1024 * 1024)
    for folder in (root / ".purecc" / "artifacts").glob("*/*"):
        if not folder.name.startswith("."):
            verify_manifest(folder)
    assert registry.aliases(store, "spotted_star")["champion"] == 1
    assert all(check.ok for check in promotion.verify(store, "spotted_star"))

    again = project.process(*NAME)
    assert again.code == 0, again.stderr
    assert (again.json["status"], again.json["champion"]) == ("promoted", again.json["version"])
    assert all(check.ok for check in promotion.verify(store, "spotted_star"))


PROGRAM = """
import sys
from pathlib import Path
from components.files import atomic_file, atomic_folder

target = Path(sys.argv[1])
for write in (atomic_file, atomic_folder):
    try:
        with write(target / write.__name__) as place:
            (place if write is atomic_file else place / "large").write_bytes(b"0" * 100_000)
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


def test_a_file_that_may_not_grow_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["OSError 27", "OSError 27"], done.stderr
    assert list(tmp_path.iterdir()) == []
