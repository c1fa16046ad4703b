"""Prefect's API for one run: the server that `PREFECT_API_URL` names, or an embedded one that ends with the run.

Prefect can start an embedded server by itself, but not so that it surely ends: it survives a killed parent, and two
runs that draw the same port talk to one server. Here the kernel chooses the port, the server gets a signal when its
parent dies (Linux), and Ctrl-C reaches the run alone, which stops the server after it has reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

import components.quiet  # noqa: F401  (before prefect)
from components.errors import PureCCError

_TIMEOUT = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
_ATTEMPTS = 3


class EngineFailed(PureCCError):
    """The embedded Prefect server did not come up."""


def prepare_environment(root: Path) -> None:
    """Prefect's defaults for this project, before it is imported; what the environment already says stays."""
    defaults = {
        "PREFECT_HOME": str(root / ".purecc" / "prefect"),
        _TIMEOUT: "300",
        "PREFECT_CLI_PROMPT": "false",
        # What happens is shown by our own progress; Prefect keeps its log in its database.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "components,flows",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class EmbeddedServer:
    """A Prefect server process that can be started early and waited for late: it boots while torch is imported."""

    def __init__(self, root: Path):
        self._log = root / ".purecc" / "logs" / "prefect.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        # Two first starts at once would both migrate the database.
        self._lock = FileLock(root / ".purecc" / "locks" / "prefect.lock")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process; does not wait for it."""
        for folder in (self._log.parent, Path(self._lock.lock_file).parent, Path(os.environ["PREFECT_HOME"])):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(timeout=self._timeout())
        self._spawn()

    def _spawn(self) -> None:
        self._port = _free_port()
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--log-level", "ERROR", "--no-scheduler", "--no-late-runs"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            EngineFailed: it ended or did not answer in time.
        """
        deadline = time.monotonic() + self._timeout()
        attempts = 1
        try:
            while True:
                if self._process is None or self._process.poll() is not None:
                    if attempts >= _ATTEMPTS:
                        raise EngineFailed(f"the embedded Prefect server ended at once: {self._tail()}")
                    attempts += 1  # the port may have been taken since it was chosen
                    self._spawn()
                elif _healthy(self.url) and self._process.poll() is None:
                    return
                elif time.monotonic() > deadline:
                    raise EngineFailed(
                        f"the embedded Prefect server did not answer within {self._timeout():g} s: {self._tail()} "
                        f"(raise {_TIMEOUT}, or start a server and set PREFECT_API_URL)"
                    )
                else:
                    time.sleep(0.1)
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Stop the process and wait for its end; an interrupt meanwhile does not leave it behind."""
        self._lock.release()
        process, self._process = self._process, None
        if process is None:
            return
        with _uninterrupted():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"{lines[-1] if lines else 'it wrote nothing'} (all of it in {self._log})"
        return str(self._log)

    @staticmethod
    def _timeout() -> float:
        return float(os.environ.get(_TIMEOUT, "300"))


@contextlib.contextmanager
def prefect_server(root: Path) -> Iterator[EmbeddedServer | None]:
    """Start the embedded server, or none where a server is configured; stop it on leaving, whatever happened."""
    prepare_environment(root)
    if _configured():
        yield None
        return
    server = EmbeddedServer(root)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def connected(server: EmbeddedServer | None) -> Iterator[None]:
    """Inside, Prefect talks to the server (waits for it); None: to the configured one."""
    if server is None:
        yield
        return
    server.wait()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url}):
        try:
            yield
        finally:
            _deliver()


@contextlib.contextmanager
def connected_with_threads(server: EmbeddedServer | None) -> Iterator[None]:
    """Like `connected`, for flows whose task runner has threads of its own; enter it before prefect is imported.

    Prefect's threads know no settings of a context: without an address in the environment they start one more server,
    which nothing ends.
    """
    if server is None:
        yield
        return
    server.wait()
    os.environ["PREFECT_API_URL"] = server.url
    try:
        with connected(server):
            yield
    finally:
        del os.environ["PREFECT_API_URL"]


def _deliver() -> None:
    """Send what Prefect's background workers still hold (logs, states of task runs) while the server lives."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    with contextlib.suppress(Exception):  # the run's own outcome matters more than its last log line
        EventsWorker.drain_all(timeout=5)
        APILogHandler().flush()


def _configured() -> bool:
    if os.environ.get("PREFECT_API_URL"):
        return True
    if "prefect" not in sys.modules:
        return False
    from prefect.settings import get_current_settings  # a test harness, or a program that set it by itself

    return get_current_settings().api.url is not None


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end_with_parent() -> None:
    """PR_SET_PDEATHSIG: the kernel sends SIGTERM to this process when its parent is gone, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
