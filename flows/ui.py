"""The pages of the two servers: Prefect's runs and MLflow's experiments, on what the flows wrote."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from components.errors import InvalidInput, PureCCError
from components.files import write_text
from components.secrets import redact
from components.settings import project_root
from components.tracking.store import open_store

log = logging.getLogger(__name__)

START_SECONDS = 180.0  # a first start migrates a database
STOP_SECONDS = 15.0


class ServerFailed(PureCCError):
    """A server ended, or did not answer in time."""


@dataclass(frozen=True)
class Server:
    """One server to start.

    Attributes:
        name: for messages.
        command: how it is started.
        environment: what it needs beyond the environment of this process.
        health: the page that answers once it is up.
        page: what a person opens.
        log: where its output goes.
        lock: held from its start until it answers: two first starts at once would both migrate the database.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    health: str
    page: str
    log: Path
    lock: Path | None = None


def is_loopback(host: str) -> bool:
    """Only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_auth(host: str, variables: Sequence[str]) -> bool:
    """Whether a server at this address has to ask who is there: at any address that other machines reach.

    Args:
        variables: the environment variables that hold what it asks for.

    Raises:
        InvalidInput: it has to, and one of the variables is not set.
    """
    if is_loopback(host):
        return False
    missing = [name for name in variables if not os.environ.get(name)]
    if missing:
        raise InvalidInput(
            f"{host!r} can be reached by other machines, and without {' and '.join(missing)} anybody there is let in",
            field="--host",
            mend="listen at 127.0.0.1 and forward the port by ssh, or set passwords; infra/compose.yaml adds TLS",
        )
    return True


def require_free(host: str, port: int, option: str) -> None:
    """Raise InvalidInput where a port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            mend = f"stop what uses it, or name another with {option}"
            raise InvalidInput(f"port {port} of {host}: {error.strerror}", field=option, mend=mend) from error


def prefect_server(root: Path, host: str, port: int) -> Server:
    """Prefect's server on the database that the flows of this project use when no server runs.

    It asks for a password where PREFECT_SERVER_API_AUTH_STRING is set (USER:PASSWORD).
    """
    return Server(
        name="Prefect",
        command=[sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)],
        environment={
            "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(root / ".purecc" / "prefect")),
            "PREFECT_UI_API_URL": f"http://{_in_url(host)}:{port}/api",
        },
        health=f"http://{_in_url(host)}:{port}/api/health",
        page=f"http://{_in_url(host)}:{port}",
        log=root / ".purecc" / "logs" / "prefect-server.log",
        lock=root / ".purecc" / "locks" / "prefect.lock",
    )


def mlflow_server(root: Path, host: str, port: int, *, auth: bool = False) -> Server:
    """MLflow's server on the store that the flows of this project write; it is made, if it is not there yet.

    Args:
        auth: whether it asks for a password: `admin` with MLFLOW_AUTH_ADMIN_PASSWORD at first.
    """
    store = open_store(root)
    artifacts = str(store.artifacts or root / "mlruns" / "artifacts")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its jobs are not used, and are six processes
    if auth:
        command += ["--app-name", "basic-auth"]
        environment |= _basic_auth(root)
    return Server(
        name="MLflow",
        command=[*command, "--backend-store-uri", store.uri, "--default-artifact-root", artifacts],
        environment=environment,
        health=f"http://{_in_url(host)}:{port}/health",
        page=f"http://{_in_url(host)}:{port}",
        log=root / ".purecc" / "logs" / "mlflow-server.log",
    )


def _basic_auth(root: Path) -> dict[str, str]:
    """MLflow's users in a database of their own, beside the store."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise InvalidInput("MLflow's passwords need Flask-WTF", field="--host", mend="pip install -e '.[servers]'")
    folder = root / ".purecc" / "mlflow-auth"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    users = f"default_permission = READ\ndatabase_uri = sqlite:///{folder / 'users.db'}\nadmin_username = admin\n"
    write_text(folder / "auth.ini", f"[mlflow]\n{users}grant_default_workspace_access = false\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
    }


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and everything that it started: politely, then not."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for survivor in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(servers: Sequence[Server], folder: Path, start_seconds: float = START_SECONDS) -> Iterator[None]:
    """Start servers side by side; once all of them answer, the body runs; at its end none of them lives.

    Raises:
        ServerFailed: one ended or did not answer in time; the end of its output is quoted.
    """
    started: list[tuple[Server, subprocess.Popen[bytes]]] = []
    try:
        with contextlib.ExitStack() as locks:
            for server in servers:
                if server.lock is not None:
                    server.lock.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        locks.enter_context(FileLock(server.lock, timeout=start_seconds))
                    except Timeout as error:
                        raise ServerFailed(f"another {server.name} server of this project is still starting") from error
                started.append((server, _start(server, folder)))
            deadline = time.monotonic() + start_seconds
            for server, process in started:
                while not _answers(server.health):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ServerFailed(_failure(server, process.returncode))
                    time.sleep(0.3)
        yield
    finally:
        for _, process in started:
            _stop(process)


def _start(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    server.log.parent.mkdir(parents=True, exist_ok=True)
    with server.log.open("wb") as output:
        return subprocess.Popen(
            server.command,
            cwd=folder,
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the whole group
        )


def _failure(server: Server, code: int | None) -> str:
    what = f"ended with exit code {code}" if code is not None else "did not answer in time"
    tail = "\n".join(server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    return f"the {server.name} server {what}; its output is in {server.log}, and ends:\n{tail}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def serve(
    host: str = "127.0.0.1",
    *,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    start_seconds: float = START_SECONDS,
) -> None:
    """Start both servers, print where they are, wait for Ctrl-C, SIGTERM or a closed terminal, and stop them.

    Where MLFLOW_TRACKING_URI or PREFECT_API_URL name a server that already runs, its address is printed and none is
    started.

    Args:
        host: the address to listen at; beyond this machine only with passwords (`require_auth`).
        prefect_port: Prefect's port.
        mlflow_port: MLflow's port.
        start_seconds: how long a server may take until it answers.

    Raises:
        InvalidInput: a taken port, or an address that others can reach without a password.
        ServerFailed: a server ended or did not answer in time.
    """
    root = project_root()
    pages: list[tuple[str, str]] = []
    servers: list[Server] = []
    if (api := os.environ.get("PREFECT_API_URL", "")).startswith("http"):
        pages.append(("Prefect", redact(api).removesuffix("/").removesuffix("/api")))
    else:
        require_auth(host, ["PREFECT_SERVER_API_AUTH_STRING"])
        require_free(host, prefect_port, "--prefect-port")
        servers.append(prefect_server(root, host, prefect_port))
    if (uri := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http"):
        pages.append(("MLflow", redact(uri)))
    else:
        auth = require_auth(host, ["MLFLOW_AUTH_ADMIN_PASSWORD"])
        require_free(host, mlflow_port, "--mlflow-port")
        servers.append(mlflow_server(root, host, mlflow_port, auth=auth))
    pages += [(server.name, server.page) for server in servers]
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if servers:
            print(f"starting {' and '.join(server.name for server in servers)} ...", flush=True)
        with running(servers, root, start_seconds):
            for name, page in sorted(pages):
                print(f"{name:8} {page}", flush=True)
            if not servers:
                return
            print("Ctrl-C stops both" if len(servers) == 2 else "Ctrl-C stops it", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
