"""Fixtures that every part shares. Telemetry is off and the hub offline before any dependency is imported."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from components import quiet as quiet  # isort: skip

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from once import made_once

if TYPE_CHECKING:
    from servers.compose import Stack

REPOSITORY = Path(__file__).resolve().parents[1]

# Takes the place of the path finder, so that for one process these packages are not installed: importing them fails,
# and `importlib.util.find_spec`, by which libraries look for optional parts, gives None.
WITHOUT_TOOLS = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("prefect", "mlflow", "dvc", "great_expectations"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One temporary folder for the whole session, shared by all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def micro_family(session_folder: Path) -> Path:
    """An untrained model family in the layout of Stable Diffusion 3.5, made once per session. Do not write into it."""
    from components.world.family import create_untrained

    return made_once(session_folder / "micro-family", lambda folder: create_untrained(folder, size="micro", seed=0))


@pytest.fixture(scope="session")
def prefect_home(session_folder: Path) -> Path:
    """What a Prefect server makes when it first starts, which takes it longer than all of a small run: its tables."""
    from flows.engine import EmbeddedServer, connected

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_HOME", str(folder))
            patch.delenv("PREFECT_API_URL", raising=False)
            server = EmbeddedServer(folder.parent / "prefect-of-session")
            try:
                server.start()
                with connected(server):
                    pass
            finally:
                server.stop()

    return made_once(session_folder / "prefect-home", make)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own (profiles and pyproject.toml, no data, no models) that the settings resolve to."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "profiles", root / "profiles")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    monkeypatch.setenv("PURECC_HOME", str(root))
    return root


@pytest.fixture
def without_tools(tmp_path: Path) -> Callable[..., str]:
    """Run a program where orchestration, tracking and data tools are not installed; gives what it prints."""

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TOOLS + textwrap.dedent(program), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's executable; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium: apt-get install chromium")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """MLflow with basic auth and Prefect, on PostgreSQL, Redis and S3: the processes of infra/compose.yaml."""
    from servers import compose

    with compose.running(tmp_path_factory.mktemp("servers"), "mlflow-user", "prefect-services", "mlflow") as stack:
        stack.complete("mlflow-user")
        yield stack
