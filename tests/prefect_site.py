"""A small project with a Prefect server of its own that runs schedules, and workers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from small_project import REPOSITORY, MicroProject


def wait_until(happens: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


@dataclass(frozen=True)
class Site:
    """A project, the environment of its server's clients, and where logs go."""

    project: MicroProject
    environment: dict[str, str]
    logs: Path

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=self.project.root, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self.environment['PREFECT_API_URL']}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        return list(self.ask("/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}}))

    def spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.logs / f"{name}.log").open("wb")
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        return subprocess.Popen(
            command, cwd=self.project.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def make_deployable(root: Path) -> None:
    """Give a small project what its deployments name: infra/prefect.yaml, and the flows by a path below the project."""
    shutil.copytree(REPOSITORY / "infra" / "work-pools", root / "infra" / "work-pools")
    shutil.copy(REPOSITORY / "infra" / "prefect.yaml", root / "infra")
    for package in ("flows", "components"):
        (root / package).symlink_to(REPOSITORY / package)


@contextlib.contextmanager
def running_site(project: MicroProject, folder: Path, home: Path | None = None) -> Iterator[Site]:
    """A project with a server of its own that runs schedules, and a work pool.

    Args:
        home: files of Prefect to begin with; None: an empty folder.
    """
    if home is not None:
        shutil.copytree(home, folder / "prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = project.environment(
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
        PREFECT_WORKER_QUERY_SECONDS="2",
    )
    make_deployable(project.root)
    found = Site(project, environment, folder)
    server = found.spawn("server", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port))
    try:

        def answers() -> bool:
            try:
                return bool(found.ask("/health"))
            except OSError:
                return False

        wait_until(answers)
        found.prefect("work-pool", "create", "purecc", "--type", "process")
        yield found
    finally:
        stop(server)


def micro(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Turn the deployments to the small project's profile."""
    file = root / "infra" / "prefect.yaml"
    content = yaml.safe_load(file.read_text())
    for deployment in content["deployments"]:
        if "profile" in deployment["parameters"]:
            deployment["parameters"]["profile"] = "micro"
    change({deployment["name"]: deployment for deployment in content["deployments"]})
    file.write_text(yaml.safe_dump(content))
