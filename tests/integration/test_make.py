"""The Makefile tells what it can do, and what is wrong with the Python it finds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """Nothing but the files that an installation is decided by."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def test_help_is_the_default_and_lists_every_target(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    for target in ("demo", "test", "check", "bench", "bench-gpu", "ui", "clean", "help", "doctor"):
        assert f"make {target} " in done.stdout
    assert not (checkout / ".venv").exists()


def test_no_supported_python_is_said_and_nothing_is_made(checkout: Path) -> None:
    done = make(checkout, "test", "PYTHON=/nowhere/python3.11")
    assert done.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13 among: /nowhere/python3.11" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "bench-gpu", "ui", "doctor"])
def test_every_target_installs_first_and_only_once(checkout: Path, target: str) -> None:
    assert "pip install" in make(checkout, "-n", target).stdout
    stamp = make(checkout, "-n", target).stdout.rpartition("touch ")[2].split()[0]
    (checkout / ".venv").mkdir()
    (checkout / stamp).touch()
    assert "pip install" not in make(checkout, "-n", target).stdout
    (checkout / "pyproject.toml").touch()
    assert "pip install" not in make(checkout, "-n", target).stdout
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("# another set\n")
    assert "pip install" in make(checkout, "-n", target).stdout
