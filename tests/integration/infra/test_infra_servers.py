"""The servers of infra/compose.yaml, started as the file says: they answer, ask for passwords, and keep secrets."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import save_file
from servers.compose import INFRA, REPOSITORY, Stack

from components.files import atomic_folder
from components.tracking import registry
from components.tracking.store import open_store

pytestmark = pytest.mark.slow


def status(url: str, user: str | None = None, password: str = "", method: str = "GET", body: object = None) -> int:
    """The status of a request."""
    request = urllib.request.Request(url, method=method)
    if user is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_every_health_check_of_the_file_passes(servers: Stack) -> None:
    """But for that of the worker, which needs a project: tests/integration/flows/test_flows_servers.py."""
    for name in servers.services.keys() - {"worker"}:
        if "healthcheck" in servers.services[name]:
            servers.start(name)
            servers.await_health(name)


def test_services_that_stand_still_are_not_healthy(servers: Stack) -> None:
    process = servers.processes["prefect-services"]
    servers.await_health("prefect-services")
    process.send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while servers.healthy("prefect-services"):
            assert time.monotonic() < deadline
            time.sleep(1)
    finally:
        process.send_signal(signal.SIGCONT)
    servers.await_health("prefect-services")


def test_both_servers_ask_for_a_password(servers: Stack) -> None:
    mlflow = f"{servers.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    prefect = f"{servers.prefect_url}/version"
    user, _, password = servers.secret("prefect_auth").partition(":")
    assert status(mlflow) == status(mlflow, "pipeline", "wrong") == status(mlflow, "admin", "password1234") == 401
    assert status(mlflow, "pipeline", servers.secret("mlflow_pipeline_password")) == 200
    assert status(prefect) == status(prefect, user, "wrong") == 401
    assert status(prefect, user, password) == 200


def test_a_browser_gets_the_pages_of_both_servers(servers: Stack) -> None:
    """An approval is given on Prefect's page; the server starts without its pages where it cannot write them."""
    for address, title in ((servers.prefect_url.removesuffix("/api"), "Prefect"), (servers.mlflow_uri, "MLflow")):
        request = urllib.request.Request(f"{address}/", headers={"Accept": "text/html"})
        password = f"pipeline:{servers.secret('mlflow_pipeline_password')}"
        if title == "MLflow":
            request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers.get_content_type() == "text/html"
            page = answer.read().decode()
        assert re.search(rf"<title>\s*{title}", page), page[:500]


def test_a_process_writes_where_its_container_may_and_nowhere_else(servers: Stack) -> None:
    if not servers.confined:
        pytest.skip("mounting is not allowed here")
    inside, outside = servers.writable("bucket")[0], servers.folder / "outside"
    outside.mkdir()
    for folder in (inside, outside, INFRA, Path(sys.prefix), Path("/var/tmp"), Path("/tmp")):
        done = servers.run("bucket", sys.executable, "-c", "import sys; open(sys.argv[1], 'x')", f"{folder}/made")
        assert (folder / "made").is_file() == (done.returncode == 0) == (folder == inside), done.stderr
        assert folder == inside or "Read-only file system" in done.stderr


def test_a_user_changes_only_what_is_theirs(servers: Stack) -> None:
    api = f"{servers.mlflow_uri}/api/2.0/mlflow"
    pipeline = ("pipeline", servers.secret("mlflow_pipeline_password"))
    admin = ("admin", servers.secret("mlflow_admin_password"))
    reader = {"username": "reader", "password": "a password of a reader"}
    assert status(f"{api}/users/create", *pipeline, "POST", reader) == 403
    assert status(f"{api}/users/create", *admin, "POST", reader) == 200
    assert status(f"{api}/registered-models/create", *pipeline, "POST", {"name": "purecc-theirs"}) == 200
    alias = {"name": "purecc-theirs", "alias": "champion", "version": "1"}
    someone = (reader["username"], reader["password"])
    assert status(f"{api}/registered-models/get?name=purecc-theirs", *someone) == 200
    assert status(f"{api}/registered-models/alias", *someone, "POST", alias) == 403
    assert status(f"{api}/registered-models/delete", *someone, "DELETE", {"name": "purecc-theirs"}) == 403


def test_the_databases_belong_to_roles_that_are_no_superusers(servers: Stack) -> None:
    roles = servers.postgres.psql(
        "SELECT rolname, rolsuper, rolcreaterole FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
    )
    assert roles.splitlines() == ["mlflow|f|f", "postgres|t|t", "prefect|f|f"]
    other = {**os.environ, "PGPASSWORD": servers.secret("mlflow_database_password")}
    address = f"postgresql://mlflow@127.0.0.1:{servers.ports['postgres']}/prefect"
    refused = subprocess.run(
        ["psql", address, "--command", "SELECT 1"],
        env={**other, "PATH": servers.postgres.superuser["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "permission denied for database" in refused.stderr


def test_no_secret_stands_in_a_log_or_a_command_line(servers: Stack) -> None:
    secrets = {file.name: file.read_text() for file in servers.secrets.iterdir() if file.name != "s3_access_key"}
    secrets["prefect_password"] = secrets["prefect_auth"].partition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert [name for name, value in secrets.items() if value in line] == []
    for service, log in servers.logs().items():
        assert [name for name, value in secrets.items() if value in log] == [], service
    log = (servers.postgres.folder / "log").read_text()
    assert [name for name, value in secrets.items() if value in log] == []


def test_events_and_leases_go_through_redis(servers: Stack) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli: apt-get install redis-tools")
    keys = ["redis-cli", "-p", str(servers.ports["redis"]), "--scan"]
    deadline = time.monotonic() + 60
    while not (found := subprocess.run(keys, capture_output=True, text=True, check=True).stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert found


def test_a_second_run_of_the_one_shot_services_changes_nothing(servers: Stack) -> None:
    for service in ("bucket", "mlflow-user", "prefect-database"):
        done = servers.run(service)
        assert done.returncode == 0, done.stderr
    mlflow = f"{servers.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(mlflow, "pipeline", servers.secret("mlflow_pipeline_password")) == 200


def test_the_deployments_are_those_of_the_project(servers: Stack) -> None:
    before, servers.project = servers.project, REPOSITORY
    try:
        done = servers.run("deployments")
    finally:
        servers.project = before
    assert done.returncode == 0, done.stdout + done.stderr
    user, _, password = servers.secret("prefect_auth").partition(":")
    request = urllib.request.Request(f"{servers.prefect_url}/deployments/filter", data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = {deployment["name"]: deployment for deployment in json.load(answer)}
    stated = yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in stated} <= set(found)
    assert {deployment["work_pool_name"] for deployment in found.values()} == {"purecc"}
    for deployment in stated:
        schedules = found[deployment["name"]]["schedules"]
        assert [each["schedule"]["cron"] for each in schedules] == [
            each["cron"] for each in deployment.get("schedules", ())
        ]


def test_the_proxy_speaks_tls_and_lets_through_what_is_named(servers: Stack) -> None:
    servers.start("proxy")
    authority = servers.folder / "certificates" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    deadline = time.monotonic() + 60
    while not authority.is_file():
        assert time.monotonic() < deadline, servers.log("proxy")
        time.sleep(0.2)
    context = ssl.create_default_context(cafile=str(authority))

    def get(host: str, path: str, name: str | None = None) -> http.client.HTTPResponse:
        deadline = time.monotonic() + 60
        while True:
            try:
                plain = socket.create_connection(("127.0.0.1", servers.ports["HTTPS_PORT"]), timeout=30)
                tunnel = context.wrap_socket(plain, server_hostname=host)
                break
            except (ConnectionError, ssl.SSLError):
                assert time.monotonic() < deadline
                time.sleep(0.5)
        connection = http.client.HTTPConnection(host)
        connection.sock = tunnel
        connection.request("GET", path, headers={"Host": name or host})
        return connection.getresponse()

    answer = get("mlflow.localhost", "/health")
    assert answer.status == 200
    assert answer.getheader("Strict-Transport-Security")
    assert get("mlflow.localhost", "/api/2.0/mlflow/experiments/get?experiment_id=0").status == 401
    assert get("prefect.localhost", "/api/health").status == 200
    assert get("prefect.localhost", "/api/version").status == 401
    # what the proxy does not know goes nowhere, and MLflow refuses names that are not its own
    assert get("mlflow.localhost", "/api/health", name="evil.example").status in (200, 400, 421)
    assert b"mlflow" not in get("mlflow.localhost", "/", name="evil.example").read().lower()
    request = urllib.request.Request(f"{servers.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "evil.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403


def test_a_server_without_its_secret_does_not_start(servers: Stack) -> None:
    missing = str(INFRA / "servers" / "nothing")
    done = servers.run("mlflow", SECRETS=str(INFRA / "servers"), MLFLOW_AUTH_ADMIN_PASSWORD_FILE=missing)
    assert done.returncode == 1
    assert "MLFLOW_AUTH_ADMIN_PASSWORD_FILE" in done.stderr


@pytest.mark.long
def test_of_promoters_on_several_hosts_the_best_wins_and_none_is_lost(
    servers: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of two threads, each with a project of its own; `scripts/fault_table.py` has up to eight."""
    spec = importlib.util.spec_from_file_location("racing", REPOSITORY / "scripts" / "racing.py")
    assert spec is not None
    assert spec.loader is not None
    racing = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "racing", racing)
    spec.loader.exec_module(racing)
    clients = {**servers.client_environment(), "PREFECT_HOME": str(tmp_path / "prefect")}
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    everything = {**os.environ, **clients}
    for name, value in clients.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    (tmp_path / "project").mkdir()
    store = open_store(tmp_path / "project")
    numbers, scores = [], (2.0, 4.0, 1.0, 3.0)
    for score in scores:
        with atomic_folder(tmp_path / "adapter") as folder:
            save_file({"w": np.array([score])}, folder / "adapter_model.safetensors")
            (folder / "provenance.json").write_text("{}")
        numbers.append(racing.register(store, "raced", tmp_path / "adapter", score))
    codes = racing.race("raced", tmp_path / "race", [numbers[:2], numbers[2:]], everything)
    assert codes == [0, 0], (tmp_path / "race" / "log").read_text()
    found = racing.outcome(store, "raced", numbers)
    assert (found.champion, found.problems) == (numbers[1], ())
    assert registry.version(store, "raced", numbers[2]).status in ("passed", "refused")
    store.client.set_registered_model_alias("purecc-raced", "champion", str(numbers[2]))
    assert len(racing.outcome(store, "raced", numbers).problems) == 2  # what the check would have seen


def test_doctor_knows_these_servers(servers: Stack, project: Path) -> None:
    def doctor(**changes: str) -> dict[str, dict[str, str]]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "doctor", "--json"],
            env={**kept, "PURECC_HOME": str(project), **servers.client_environment(), **changes},
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not any(
            servers.secret(name) in done.stdout + done.stderr for name in ("mlflow_pipeline_password", "prefect_auth")
        )
        return {check["name"]: check for check in json.loads(done.stdout)}

    checks = doctor()
    for name, user in (("tracking", "pipeline"), ("orchestration", "purecc")):
        assert checks[name]["ok"], checks[name]
        assert "version" in checks[name]["detail"]
        assert user in checks[name]["detail"]
    wrong = doctor(MLFLOW_TRACKING_PASSWORD="a wrong one", PREFECT_API_AUTH_STRING="purecc:a wrong one")
    assert not wrong["tracking"]["ok"]
    assert "MLFLOW_TRACKING_PASSWORD" in wrong["tracking"]["mend"]
    assert not wrong["orchestration"]["ok"]
    assert "PREFECT_API_AUTH_STRING" in wrong["orchestration"]["mend"]
    anonymous = doctor(MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD="", PREFECT_API_AUTH_STRING="")
    assert not anonymous["tracking"]["ok"]
    assert not anonymous["orchestration"]["ok"]
