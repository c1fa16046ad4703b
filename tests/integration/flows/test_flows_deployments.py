"""Deployments on a real local server: what infra/prefect.yaml makes of them, a schedule that fires, two workers."""

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

import kubernetes_validate
import pytest
import yaml

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[3]
INTERVAL = 5


def wait_until(happens: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


@dataclass(frozen=True)
class Site:
    """A project, the environment of its server's clients, and where logs go."""

    project: Any
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


@pytest.fixture
def site(customized: Any, tmp_path: Path) -> Iterator[Site]:
    """A customized project with a server of its own."""
    with running_site(customized, tmp_path) as found:
        yield found


@contextlib.contextmanager
def running_site(project: Any, folder: Path) -> Iterator[Site]:
    """A project with a server of its own that runs schedules, and a work pool."""
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
    shutil.copytree(REPOSITORY / "infra" / "work-pools", project.root / "infra" / "work-pools")
    shutil.copy(REPOSITORY / "infra" / "prefect.yaml", project.root / "infra")
    for package in ("flows", "components"):  # deployments name their flows by a path below the project
        (project.root / package).symlink_to(REPOSITORY / package)
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


def test_schedules_fire_and_workers_take_one_concept_each(site: Site) -> None:
    def often(deployments: dict[str, Any]) -> None:
        deployments["continual"]["schedules"] = [{"interval": INTERVAL, "active": True}]
        deployments["benchmark"]["schedules"] = []

    site.prefect("deploy", "--all", "--prefect-file", str(REPOSITORY / "infra" / "prefect.yaml"))
    deployed = {each["name"]: each for each in site.ask("/deployments/filter", {})}
    assert set(deployed) == {"customize", "continual", "retrain", "benchmark"}
    assert deployed["continual"]["schedules"][0]["schedule"]["cron"] == "0 3 * * 1"
    assert deployed["continual"]["global_concurrency_limit"]["limit"] == 1
    assert deployed["continual"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    micro(site.project.root, often)
    site.prefect("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    workers = [site.spawn(f"worker-{n}", "worker", "start", "--pool", "purecc", "--limit", "1") for n in (1, 2)]
    try:
        wait_until(lambda: any(run["state_type"] == "COMPLETED" for run in site.runs("continual")), 900)
        by_schedule = [run for run in site.runs("continual") if run["auto_scheduled"]]
        assert any(run["state_type"] == "COMPLETED" for run in by_schedule)
        site.prefect("deployment", "schedule", "clear", "continual/continual", "--accept-yes")

        # another seed: the concept is to be done again, by a worker
        command = ["continual", "--workers", "--profile", "micro", "--set", "seed=3", "--json"]
        done = site.project.process(*command, **site.environment)
        assert done.code == 0, done.stderr
        assert [(row["name"], row["status"]) for row in done.json["concepts"]] == [("spotted_star", "promoted")]
        made = [run for run in site.runs("customize") if run["name"] == "spotted_star"]
        assert [run["state_type"] for run in made] == ["COMPLETED"]
        assert made[0]["deployment_id"] is not None
    finally:
        for worker in workers:
            stop(worker)


def test_the_job_of_a_cluster_is_one_that_kubernetes_takes_and_does_not_repeat() -> None:
    template = json.loads((REPOSITORY / "infra" / "work-pools" / "kubernetes.json").read_text())
    variables = template["variables"]["properties"]
    filled = {name: each["default"] for name, each in variables.items() if "default" in each}
    filled |= {
        "name": "spotted-star",
        "labels": {"app": "purecc-run"},
        "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": "PREFECT_API_URL", "value": "http://prefect-server:4200/api"}],
    }

    used: set[str] = set()

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        if isinstance(node, str):
            for name, value in filled.items():
                if f"{{{{ {name} }}}}" in node:
                    used.add(name)
                    if node == f"{{{{ {name} }}}}":
                        return value
                    node = node.replace(f"{{{{ {name} }}}}", str(value))
        return node

    configuration = fill(template["job_configuration"])
    job = configuration["job_manifest"]
    assert "{{" not in json.dumps(configuration)
    assert used == set(variables)  # no variable without an effect
    job["metadata"].pop("namespace")
    kubernetes_validate.validate({**job, "metadata": {**job["metadata"], "name": "x"}}, "1.31", strict=True)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
