"""Two workers on real servers: Prefect and MLflow over HTTP with passwords, on PostgreSQL, artifacts in S3.

The workers begin as their containers do: with an empty `data`, and with few folders that they can write to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image
from prefect_site import make_deployable, micro
from servers.compose import REPOSITORY, Stack

from components.concepts import versions
from components.concepts.store import add_concept
from components.files import verify_manifest
from components.settings import ConceptSettings
from components.tracking import promotion, registry
from components.tracking.store import open_store

pytestmark = pytest.mark.slow
CONCEPTS = ("spotted_star", "dotted_circle")

# In the workers' environment, beside the servers' passwords.
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAQWERTYUIOPASDFGH",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key0123456789",
    "HF_TOKEN": "hf_plantedplantedplantedplanted",
    "SOME_SERVICE_PASSWORD": "planted correct horse",
}

# What a person does who has the servers' addresses and passwords in the environment.
RUN = """
import json, sys, time
from prefect import get_client
from prefect.deployments import run_deployment

runs = [
    run_deployment("customize/customize", parameters={"name": name}, timeout=0, as_subflow=False)
    for name in sys.argv[1:]
]
with get_client(sync_client=True) as client:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        states = [client.read_flow_run(run.id) for run in runs]
        if all(run.state.is_final() for run in states):
            break
        time.sleep(2)
    logs = [entry.message for entry in client.read_logs(limit=200)]
print(json.dumps({"runs": {run.parameters["name"]: run.state.type.value for run in states}, "logs": logs}))
"""


@pytest.fixture(scope="module")
def project(micro_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro project with a second concept."""
    root = tmp_path_factory.mktemp("project") / "project"
    shutil.copytree(micro_template, root, symlinks=True)
    photos = []
    for number in range(3):
        photos.append(root.parent / f"{number}.png")
        pixels = np.random.default_rng(100 + number).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos[-1])
    texts = ["a [V] circle on the left, brick background"] * 3
    add_concept(
        root / "data" / "concepts",
        CONCEPTS[1],
        class_word="circle",
        images=photos,
        settings=ConceptSettings(),
        texts=texts,
    )
    versions.add(root)
    versions.push(root)
    for folder in ("data", ".dvc/cache", ".dvc/tmp", ".git"):  # what the workers' image lacks
        shutil.rmtree(root / folder)
    make_deployable(root)
    micro(root, lambda deployments: None)
    return root


@pytest.fixture(scope="module")
def clients(servers: Stack, project: Path) -> dict[str, str]:
    """The environment of a person who works with the servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    own = {"PURECC_HOME": str(project), "PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(project.parent / "prefect")}
    return {**kept, **own, **servers.client_environment()}


@pytest.fixture(scope="module")
def customized(servers: Stack, project: Path, clients: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Both concepts customized by two workers; what the person saw."""
    servers.project = project
    address = servers.mlflow_uri.replace("//", f"//pipeline:{servers.secret('mlflow_pipeline_password')}@")
    servers.planted["worker"] = {**PLANTED, "MLFLOW_TRACKING_URI": address, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    servers.scale("worker", 2)
    for number in range(2):
        servers.await_health(f"worker-{number}")
    done = subprocess.run(
        [sys.executable, "-c", RUN, *CONCEPTS],
        env=clients,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr + json.dumps(servers.logs(), indent=1)[-6000:]
    yield json.loads(done.stdout.splitlines()[-1])
    for number in range(2):
        servers.kill(f"worker-{number}")
    del servers.planted["worker"]  # other tests use these servers after this one


@pytest.fixture
def store(clients: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shared store, as a project sees it that has never run anything."""
    for name, value in clients.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    (tmp_path / "elsewhere").mkdir()
    return open_store(tmp_path / "elsewhere")


def test_each_worker_makes_a_champion(customized: dict[str, Any], servers: Stack, project: Path, store: Any) -> None:
    assert customized["runs"] == dict.fromkeys(CONCEPTS, "COMPLETED"), customized["logs"]
    finished = [len(re.findall(r"Flow run .* Completed\(\)", servers.log(f"worker-{number}"))) for number in range(2)]
    assert finished == [1, 1]  # each takes one at a time
    for name in CONCEPTS:
        assert registry.aliases(store, name) == {"champion": 1}
    assert sorted(folder.name for folder in (project / "data" / "concepts").iterdir()) == sorted(CONCEPTS)
    assert not (project / "mlruns").exists()
    rows = "SELECT count(*) FROM model_versions WHERE name IN ('purecc-spotted_star', 'purecc-dotted_circle')"
    assert servers.postgres.psql(rows, database="mlflow") == "2"
    assert (
        servers.postgres.psql("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'", database="prefect") == "2"
    )


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_champion_is_fetched_over_http_and_whole(
    name: str, customized: dict[str, Any], servers: Stack, store: Any
) -> None:
    assert [check.ok for check in promotion.verify(store, name)] == [True]
    champion = registry.by_alias(store, name)
    assert champion is not None
    with registry.adapter_folder(store, name, champion.number) as folder:
        verify_manifest(folder)
        provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["concept"] == name
    source = store.client.get_model_version(registry.model_name(name), "1").source
    assert store.client.get_run(champion.run_id).info.artifact_uri.startswith("mlflow-artifacts:/"), source


def test_no_secret_is_in_what_a_run_writes(customized: dict[str, Any], servers: Stack, project: Path) -> None:
    known = [servers.secret(name) for name in ("mlflow_pipeline_password", "prefect_auth")]
    secrets = [value.encode() for value in (*PLANTED.values(), *known, known[1].partition(":")[2])]

    def found_in(content: bytes) -> list[bytes]:
        return [secret for secret in secrets if secret in content]

    files = [file for file in project.rglob("*") if file.is_file()]
    assert len(files) > 50
    written = {str(file): found_in(file.read_bytes()) for file in files}
    written |= {name: found_in(log.encode()) for name, log in servers.logs().items()}
    for database in ("mlflow", "prefect", "mlflow_auth"):
        dump = subprocess.run(
            ["pg_dump", "--data-only", database], env=servers.postgres.superuser, capture_output=True, check=True
        )
        assert b"COPY public." in dump.stdout
        written[database] = found_in(dump.stdout)
    store = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{servers.ports['rustfs']}",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    objects = [entry["Key"] for entry in store.list_objects_v2(Bucket="purecc")["Contents"]]
    assert any(key.endswith("provenance.json") for key in objects)
    assert any(key.endswith(".html") for key in objects)
    for key in objects:
        written[key] = found_in(store.get_object(Bucket="purecc", Key=key)["Body"].read())
    assert {where: found for where, found in written.items() if found} == {}


def test_the_command_line_works_on_the_servers(
    customized: dict[str, Any], clients: dict[str, str], project: Path
) -> None:
    def purecc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
        return subprocess.run(command, env=clients, cwd=project, capture_output=True, text=True, check=False)

    listed = purecc("models", "list")
    assert {model["name"] for model in json.loads(listed.stdout)} >= set(CONCEPTS), listed.stderr
    again = purecc("customize", CONCEPTS[0], "--profile", "micro")
    assert json.loads(again.stdout)["status"] == "unchanged", again.stderr
    report = purecc("report", CONCEPTS[0], "--no-open")
    assert report.returncode == 0, report.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "flows.cli", "models", "list", "--json"],
        env={**clients, "MLFLOW_TRACKING_PASSWORD": "wrong"},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr
    assert "MLFLOW_TRACKING_USERNAME" in wrong.stderr
