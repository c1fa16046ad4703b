"""infra/compose.yaml, read as the program that it is, and run without containers.

Each service is started with the entrypoint, the command and the environment that the file states, through the file's
own secrets, and is up when the file's own health check says so. Only addresses and paths are exchanged: `mlflow:5000`
for `127.0.0.1:<free port>`, `/run/secrets` for a temporary folder, and so on (`Stack.native`). Where this machine
allows mounting, a process can write where the file lets its container write, and nowhere else (`servers.confinement`).
Three images are stood in for: PostgreSQL and Redis by Debian's packages, RustFS by moto's S3 server.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from servers import confinement
from servers.postgres import Postgres

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
# Service -> the port that it listens at in its container.
PORTS = {
    "postgres": 5432,
    "redis": 6379,
    "rustfs": 9000,
    "mlflow": 5000,
    "prefect-server": 4200,
    "worker": 8080,
    "proxy": 8081,
}
PROXY_PORTS = {"HTTP_PORT": 8080, "HTTPS_PORT": 8443}
WORKING_DIRECTORIES = {"redis": "/data"}  # of images that are not ours
START_SECONDS = 400.0  # machines that run tests are busy


def read(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with its anchors resolved and `${NAME:-default}` replaced."""

    def variable(match: re.Match[str]) -> str:
        return (variables or {}).get(match["name"], match["default"] or "")

    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", variable, text)))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class Stack:
    """The services of the file as processes.

    Attributes:
        folder: logs, data, secrets.
        project: what stands for the worker's `/project`.
        variables: for `${NAME}` in the file.
        planted: service -> environment that a test adds to it.
        confined: whether its processes write only where the file lets them.
    """

    folder: Path
    project: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    planted: dict[str, dict[str, str]] = field(default_factory=dict)
    confined: bool = field(default_factory=confinement.available)

    def __post_init__(self) -> None:
        self.content = read(self.variables)
        self.services: dict[str, dict[str, Any]] = self.content["services"]
        names = [*PORTS, *PROXY_PORTS]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.secrets = self.folder / "secrets"
        self.configuration = self.folder / "configuration"
        self.backups = self.folder / "backups"
        self.postgres = Postgres(self.ports["postgres"])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._done: set[str] = set()

    # What a client has to know

    @property
    def mlflow_uri(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect-server']}/api"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def client_environment(self) -> dict[str, str]:
        """What the file tells a worker about its servers; what a person sets who works with them."""
        environment = self.environment("worker")
        names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "PREFECT_API_URL")
        return {
            **{name: environment[name] for name in names},
            "MLFLOW_TRACKING_PASSWORD": self.secret("mlflow_pipeline_password"),
            "PREFECT_API_AUTH_STRING": self.secret("prefect_auth"),
        }

    # The file as processes

    # A name is that of a service, or of one of several processes of a service: `worker-1`.

    def service_of(self, name: str) -> str:
        return name if name in self.services else name.rpartition("-")[0]

    def port(self, name: str) -> int:
        """Where a process listens: at a port of its own."""
        if name not in self.ports:
            (self.ports[name],) = free_ports(1)
        return self.ports[name]

    def native(self, text: str, name: str) -> str:
        """A value of the file as it has to be on this machine: ports of our own, paths of our own."""
        for service, port in PORTS.items():
            text = re.sub(rf"(?<![\w.-]){service}:{port}\b", f"127.0.0.1:{self.ports[service]}", text)
        own = PORTS.get(self.service_of(name))
        if own is not None:
            text = re.sub(rf"(127\.0\.0\.1|0\.0\.0\.0):{own}\b", f"127.0.0.1:{self.port(name)}", text)
            text = re.sub(rf"^(--port=)?{own}$", rf"\g<1>{self.port(name)}", text)
        text = text.replace("--host=0.0.0.0", "--host=127.0.0.1")
        paths = self._paths(name)
        inside = "|".join(map(re.escape, sorted(paths, key=len, reverse=True)))
        # in one go: what a path became may look like another one
        return re.sub(rf"(?<![\w/])({inside})(?=/|$)", lambda match: str(paths[match[1]]), text)

    def _paths(self, name: str) -> dict[str, Path]:
        known = {
            "/run/secrets": self.secrets,
            "/etc/purecc": self.configuration,
            "/etc/caddy": self.configuration,
            "/project": self.project or self.folder,
            "/certificates": self.folder / "certificates",
            "/backups": self.backups,
        }
        mounts = (path for path in self._mounts(name) if not any(Path(path).is_relative_to(each) for each in known))
        return {path: self.folder / "mounts" / name / path.lstrip("/") for path in mounts} | known

    def _mounts(self, name: str) -> list[str]:
        """The paths in a service's container that the file lets it write to: its tmpfs, and its volumes."""
        stated = self.services[self.service_of(name)]
        volumes = [mount.split(":") for mount in stated.get("volumes", ())]
        assert stated["read_only"] is True
        return [
            *(mount.partition(":")[0] for mount in stated.get("tmpfs", ())),
            *(mount[1] for mount in volumes if mount[2:] != ["ro"]),
        ]

    def writable(self, name: str) -> list[Path]:
        """The folders of this machine that stand for them."""
        return [Path(self.native(path, name)) for path in self._mounts(name)]

    def command(self, name: str) -> list[str]:
        """Entrypoint and command of a service."""
        stated = self.services[self.service_of(name)]
        parts = [*stated.get("entrypoint", ()), *stated["command"]]
        return [self.native(part, name) for part in parts]

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a service: what the file states, and what an image or machine brings along."""
        service = self.service_of(name)
        values = self.services[service].get("environment", {})
        stated = {key: self.native(str(value), name) for key, value in values.items()}
        for key in PROXY_PORTS.keys() & stated.keys():
            stated[key] = str(self.ports[key])
        machine = {
            "PATH": f"{Path(sys.executable).parent}:{self.postgres.superuser['PATH']}",
            "HOME": str(self.folder / "home"),  # our images have none
            "TMPDIR": self.native("/tmp", name),
            "SECRETS": str(self.secrets),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        return {**machine, **stated, **self.planted.get(service, {})}

    def prepare(self) -> None:
        """Secrets by the script that makes them, and the files that images carry."""
        subprocess.run([str(INFRA / "make-secrets.sh"), str(self.secrets)], check=True, stdout=subprocess.DEVNULL)
        self.configuration.mkdir(parents=True, exist_ok=True)
        for file in (INFRA / "servers").iterdir():
            shutil.copy(file, self.configuration)
        users = self.configuration / "mlflow-auth.ini"
        users.write_text(self.native(users.read_text(), "mlflow"))

    def start(self, *wanted: str) -> None:
        """Start services and what they depend on, in the file's order and by its conditions."""
        if not self.secrets.is_dir():
            self.prepare()
        for service in wanted:
            if service in self.processes or service in self._done:
                continue
            for needed, condition in self.services[service].get("depends_on", {}).items():
                self.start(needed)
                if condition["condition"] == "service_completed_successfully":
                    self.complete(needed)
                else:
                    assert condition["condition"] == "service_healthy"
                    self.await_health(needed)
            self._launch(service)

    def _launch(self, service: str, number: int | None = None) -> None:
        if service == "postgres":
            self.postgres.start()
            environment = {**self.environment(service), **self.postgres.superuser}
            made = subprocess.run(
                [str(self.configuration / "databases.sh")], env=environment, capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, made.stderr
            self._done.add(service)
            return
        name = service if number is None else f"{service}-{number}"
        if service == "rustfs":  # moto takes any key; what is checked is that one arrives
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports[service])]
        else:
            command = self.command(name) if service != "redis" else [*self.command(name), "--bind", "127.0.0.1"]
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {command[0]}: apt-get install {command[0]}")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._contained(name, command),
                env=self.environment(name),
                cwd=self._work(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _contained(self, name: str, command: Sequence[str]) -> list[str]:
        """A command line as it runs in the service's container."""
        writable = self.writable(name)
        for folder in writable:
            folder.mkdir(parents=True, exist_ok=True)
        return confinement.confined(command, writable) if self.confined else list(command)

    def _work(self, name: str) -> Path:
        service = self.service_of(name)
        stated = self.services[service].get("working_dir", WORKING_DIRECTORIES.get(service))
        work = self.folder / name if stated is None else Path(self.native(stated, name))
        work.mkdir(parents=True, exist_ok=True)
        return work

    def run(self, service: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose run` does: a service that ends by itself, with its own command or another one."""
        entrypoint = [self.native(part, service) for part in self.services[service].get("entrypoint", ())]
        return subprocess.run(
            self._contained(service, [*entrypoint, *arguments] if arguments else self.command(service)),
            env={**self.environment(service), **environment},
            cwd=self._work(service),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def scale(self, service: str, count: int) -> None:
        """Start a service that many times, as `docker compose up --scale`."""
        for needed in self.services[service]["depends_on"]:
            self.start(needed)
        for needed, condition in self.services[service]["depends_on"].items():
            if condition["condition"] == "service_completed_successfully":
                self.complete(needed)
            else:
                self.await_health(needed)
        for number in range(count):
            self._launch(service, number)

    def complete(self, service: str) -> None:
        """Wait until a service that ends by itself has ended well."""
        if service in self._done:
            return
        process = self.processes.pop(service)
        assert process.wait(timeout=START_SECONDS) == 0, self.log(service)
        self._done.add(service)

    def healthy(self, name: str) -> bool:
        """Whether the file's health check of a service passes now."""
        test = self.services[self.service_of(name)]["healthcheck"]["test"]
        assert test[0] == "CMD"
        command = [self.native(part, name) for part in test[1:]]
        done = subprocess.run(command, env=self.environment(name), capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def await_health(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.healthy(name):
            process = self.processes.get(name)
            assert process is None or process.poll() is None, f"{name} ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name} is not healthy:\n{self.log(name)}"
            time.sleep(0.5)

    def log(self, service: str) -> str:
        """What a service wrote."""
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def logs(self) -> dict[str, str]:
        """What every service wrote."""
        return {path.stem: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}

    def kill(self, service: str) -> None:
        """SIGKILL for a service and everything that it started."""
        process = self.processes.pop(service)
        for member in _family([process.pid]):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def revive(self, name: str) -> None:
        """Start a killed process of a scaled service again, as its restart policy would; e.g. `worker-1`."""
        service, _, number = name.rpartition("-")
        self._launch(service, int(number))

    def stop(self) -> None:
        """End all of them, the last started first."""
        running = {name: process for name, process in self.processes.items() if process.poll() is None}
        family = _family([process.pid for process in running.values()])
        for process in reversed(running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=20)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()
        self.postgres.remove()


def _family(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return found


@contextlib.contextmanager
def running(folder: Path, *services: str, project: Path | None = None, **variables: str) -> Iterator[Stack]:
    """The services, with all that they need, until the end of the body."""
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(folder, project, variables)
    try:
        stack.start(*services)
        for service in services:
            if "healthcheck" in stack.services[service]:
                stack.await_health(service)
        yield stack
    finally:
        stack.stop()
