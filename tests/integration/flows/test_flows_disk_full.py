"""The disk full in the middle of a run: said clearly, nothing corrupted, and the run goes on when there is room."""

from __future__ import annotations

import contextlib
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
KIB = 1024


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at this folder, in memory, with what lay there; `resize` changes how much it holds."""
    before = folder.with_name(f"{folder.name}.before")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(before)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copytree(before, folder, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def resize(folder: Path, room: int) -> None:
    used = shutil.disk_usage(folder).used
    subprocess.run(["mount", "-o", f"remount,size={used + room}", str(folder)], check=True)


def require_untouched(root: Path) -> None:
    """The champion is the one from before, whole; what stands among the kept results is whole as well."""
    for folder in (root / ".purecc" / "artifacts").glob("*/*"):
        if not folder.name.startswith("."):
            verify_manifest(folder)
    store = open_store(root)
    assert registry.aliases(store, "spotted_star")["champion"] == 1
    assert all(check.ok for check in promotion.verify(store, "spotted_star"))


def require_promoted(root: Path, again: Any) -> None:
    assert again.code == 0, again.stderr
    assert (again.json["status"], again.json["champion"]) == ("promoted", again.json["version"])
    assert Path(again.json["report"]).read_text().rstrip().endswith("</html>")
    assert all(check.ok for check in promotion.verify(open_store(root), "spotted_star"))


@pytest.mark.slow
def test_a_run_that_finds_no_room_goes_on_when_there_is_some(customized: Any) -> None:
    root = customized.root
    with small_disk(root):
        open_store(root)  # the project moved: its paths are rewritten before the disk is full
        resize(root, 1280 * KIB)  # enough to begin with
        done = customized.process(*NAME)
        assert done.code == 1, done.stderr
        assert "disk is full" in done.json["error"]["message"], done.stderr
        assert customized.servers() == []
        resize(root, 300 * 1024 * KIB)
        require_untouched(root)
        require_promoted(root, customized.process(*NAME))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("folder", "room"),
    [
        (".purecc/artifacts", 128 * KIB),
        # the adapters find room, the evaluation does not
        pytest.param(".purecc/artifacts", 300 * KIB, marks=pytest.mark.long),
        # the checkpoints of these models are small
        pytest.param(".purecc/work", 16 * KIB, marks=pytest.mark.long),
        pytest.param(".purecc/reports", 128 * KIB, marks=pytest.mark.long),
        ("mlruns", 128 * KIB),
        pytest.param("mlruns", 600 * KIB, marks=pytest.mark.long),
    ],
)
def test_a_folder_without_room_is_named_and_the_run_goes_on_when_there_is_some(
    folder: str, room: int, customized: Any
) -> None:
    root = customized.root
    with small_disk(root / folder):
        open_store(root)
        resize(root / folder, room)
        done = customized.purecc(*NAME)
        assert done.code == 1, done.stderr
        error = done.json["error"]
        assert (error["kind"], "make space" in error["mend"]) == ("DiskFull", True)
        assert Path(error["file"]).is_relative_to(root / folder)
        resize(root / folder, 300 * 1024 * KIB)
        require_untouched(root)
        require_promoted(root, customized.purecc(*NAME))


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
