"""A real MLflow server on SQLite that proxies its artifacts, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.tracking.store import open_store


@dataclass(frozen=True)
class MlflowServer:
    """A running server: where it answers, its process, and the folder that holds its artifacts."""

    address: str
    pid: int
    artifacts: Path


@contextlib.contextmanager
def running_mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A server whose files are below `folder`, which is made; it is killed on leaving.

    Raises:
        RuntimeError: it ended, or did not answer within four minutes; with its log.
    """
    folder.mkdir()
    open_store(folder)  # migrated once, under our lock
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, artifacts, log = f"http://127.0.0.1:{port}", folder / "stored", folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlruns/mlflow.db"]
    command += ["--artifacts-destination", str(artifacts), "--serve-artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as in infra/: a dozen processes less
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield MlflowServer(address, process.pid, artifacts)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
