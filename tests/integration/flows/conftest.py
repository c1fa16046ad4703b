"""Small projects, each made once and copied by the tests that change it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_guard import network_guard
from once import made_once
from small_project import REPOSITORY, MicroProject, build


@pytest.fixture(scope="session")
def micro_template(session_folder: Path, micro_family: Path, prefect_home: Path) -> Path:
    """A project in which nothing ran yet. Do not write into it."""

    def make(folder: Path) -> None:
        build(folder, micro_family)
        shutil.copytree(prefect_home, folder / ".purecc" / "prefect")

    return made_once(session_folder / "micro-project", make)


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Iterator[None]:
    """One Prefect server for all commands that run in this process."""
    from flows.engine import EmbeddedServer, connected

    root = tmp_path_factory.mktemp("prefect")
    shutil.copytree(prefect_home, root / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(root / "home"))
        patch.delenv("PREFECT_API_URL", raising=False)
        server = EmbeddedServer(root)
        try:
            server.start()
            with connected(server):
                yield
        finally:
            server.stop()


def _after(root: Path, said: Path, *command: str) -> None:
    """The project after a command, which had no network, and beside it what the command said."""
    project = MicroProject(root)
    guard, attempts = network_guard(said.with_suffix(".guard")), said.with_suffix(".network")
    done = project.process(
        *command, "--profile", "micro", "--json", PYTHONPATH=f"{guard}:{REPOSITORY}", NETWORK_LOG=str(attempts)
    )
    assert done.stdout, done.stderr
    assert not attempts.exists(), attempts.read_text()
    assert project.servers() == []
    said.write_text(json.dumps({"code": done.code, **done.json}))


@pytest.fixture(scope="session")
def customized_template(session_folder: Path, micro_template: Path) -> tuple[Path, dict[str, Any]]:
    """A project whose concept was customized once, and what the command said."""
    said = session_folder / "customized-project.json"

    def make(folder: Path) -> None:
        shutil.copytree(micro_template, folder, symlinks=True, dirs_exist_ok=True)
        _after(folder, said, "customize", "spotted_star")

    folder = made_once(session_folder / "customized-project", make)
    found = json.loads(said.read_text())
    assert found["code"] == 0
    return folder, found


SEVERAL = {"spotted_star": "star", "ball": "circle", "wash": "style", "dwarf": "star"}


@pytest.fixture(scope="session")
def several_template(session_folder: Path, micro_family: Path, prefect_home: Path) -> tuple[Path, dict[str, Any]]:
    """A project of several concepts, one of them with pictures that are too small, after one `continual`."""
    said = session_folder / "several-project.json"

    def make(folder: Path) -> None:
        build(folder, micro_family, SEVERAL)
        shutil.copytree(prefect_home, folder / ".purecc" / "prefect")
        _after(folder, said, "continual")

    return made_once(session_folder / "several-project", make), json.loads(said.read_text())


@pytest.fixture
def several(several_template: tuple[Path, dict[str, Any]], tmp_path: Path) -> MicroProject:
    """A copy of that project."""
    root = tmp_path / "project"
    shutil.copytree(several_template[0], root, symlinks=True)
    return MicroProject(root)


@pytest.fixture
def customized(customized_template: tuple[Path, dict[str, Any]], tmp_path: Path) -> MicroProject:
    """A copy of that project: it was moved, too."""
    root = tmp_path / "project"
    shutil.copytree(customized_template[0], root, symlinks=True)
    return MicroProject(root)
