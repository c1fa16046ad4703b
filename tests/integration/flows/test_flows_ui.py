"""`purecc ui`: both pages answer, Ctrl-C leaves no process, and nobody else is let in by accident."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from components.errors import InvalidInput
from flows import ui

PASSWORDS = ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD")
PROGRAM = """
import sys
from flows.ui import serve
serve(prefect_port=int(sys.argv[1]), mlflow_port=int(sys.argv[2]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_both_pages_answer_and_ctrl_c_leaves_no_process(project: Path) -> None:
    prefect_port, mlflow_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_HOME", "PREFECT_API_URL")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(prefect_port), str(mlflow_port)],
        env=environment,
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    family: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        printed = "".join(lines)
        assert f"http://127.0.0.1:{prefect_port}" in printed, printed
        assert f"http://127.0.0.1:{mlflow_port}" in printed, printed
        assert "<html" in page(f"http://127.0.0.1:{prefect_port}/").lower()
        assert "mlflow" in page(f"http://127.0.0.1:{mlflow_port}/").lower()
        assert (project / ".purecc" / "prefect" / "prefect.db").is_file()
        assert (project / "mlruns" / "mlflow.db").is_file()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        listening = {
            connection.laddr.ip
            for member in family
            for connection in member.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        deadline = time.monotonic() + 5
        while any(member.is_running() for member in family) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [member for member in family if member.is_running()] == []
    finally:
        if process.poll() is None:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            if member.is_running():
                member.kill()
        process.wait()


def test_server_that_ends_is_reported_with_its_output_and_the_other_is_stopped(tmp_path: Path) -> None:
    def server(name: str, code: str) -> ui.Server:
        command = [sys.executable, "-c", code]
        return ui.Server(name, command, {}, f"http://127.0.0.1:{free_port()}", "", tmp_path / f"{name}.log")

    healthy = server(
        "healthy", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    broken = server("broken", "import time; time.sleep(1); raise SystemExit('no such database')")
    with pytest.raises(ui.ServerFailed, match="(?s)broken server ended with exit code 1.*no such database"):
        with ui.running([broken, healthy], tmp_path):
            pytest.fail("the body must not run")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    silent = ui.Server("silent", command, {}, f"http://127.0.0.1:{free_port()}", "", tmp_path / "log")
    with pytest.raises(ui.ServerFailed, match="did not answer in time"):
        with ui.running([silent], tmp_path, start_seconds=0.5):
            pytest.fail("the body must not run")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_address_that_others_reach_is_refused_without_passwords(
    host: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", *PASSWORDS):
        monkeypatch.delenv(name, raising=False)
    for name, other in (PASSWORDS, PASSWORDS[::-1]):
        with pytest.raises(InvalidInput, match=f"--host.*can be reached.*{name}"):
            ui.require_auth(host, [name, other])
        monkeypatch.setenv(other, "")
        with pytest.raises(InvalidInput, match="--host.*can be reached"):
            ui.serve(host)
    for name in PASSWORDS:
        monkeypatch.setenv(name, "admin:a-long-password")
    assert ui.require_auth(host, PASSWORDS)
    assert not ui.require_auth("127.0.0.1", PASSWORDS)


def test_a_server_that_others_reach_asks_for_a_password(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a-long-password")
    server = ui.mlflow_server(project, "0.0.0.0", free_port(), auth=True)
    assert server.command[server.command.index("--app-name") + 1] == "basic-auth"
    assert "a-long-password" not in " ".join([*server.command, *server.environment.values()])
    assert not (project / "basic_auth.db").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_addresses(host: str) -> None:
    assert ui.is_loopback(host)


def test_taken_port_is_named_with_its_option(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"--prefect-port: port {port}"):
            ui.serve(prefect_port=port)


def test_servers_that_run_elsewhere_are_only_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:a-long-password@prefect.example:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    ui.serve()
    assert capsys.readouterr().out.splitlines() == [
        "MLflow   https://mlflow.example",
        "Prefect  http://***@prefect.example:4200",
    ]
