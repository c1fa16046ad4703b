"""`mlflow models serve`: the registered model answers over HTTP, from another folder, without the project."""

from __future__ import annotations

import base64
import importlib.util
import json
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
from typing import Any

import psutil
import pytest

from components.serving.recording import difference, picture, read_recording
from components.settings import PromotionSettings
from components.tracking import registry, servability
from components.tracking.store import Store, open_store

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A project with an untrained model and one champion."""
    spec = importlib.util.spec_from_file_location("fresh_consumer", REPOSITORY / "scripts" / "fresh_consumer.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        script.make_project(root)
        return open_store(root)


@pytest.fixture(scope="module")
def address(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PURECC_", "PYTHON"))}
    environment |= {"MLFLOW_TRACKING_URI": store.uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/purecc-star@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(address: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_recorded_picture_comes_over_http(store: Store, address: str) -> None:
    with registry.fetched(store, "models:/purecc-star/1", registry.RECORDING) as folder:
        recording = read_recording(folder)
    status, answer = post(address, {"dataframe_records": [recording.request.model_dump(exclude_none=True)]})
    assert status == 200
    (row,) = answer["predictions"]
    mean, _ = difference(picture(base64.b64decode(row["png"])), recording.picture)
    assert mean < 0.5
    facts = json.loads(row["facts"])
    assert (facts["prompt"], facts["seed"], facts["concepts"]) == (recording.request.prompt, 3, ["star"])


def test_the_example_that_comes_with_the_model_is_answered(store: Store, address: str) -> None:
    (example,) = (store.root / "mlruns" / "artifacts").rglob("serving_input_example.json")
    status, answer = post(address, json.loads(example.read_text()))
    assert status == 200
    facts = json.loads(answer["predictions"][0]["facts"])
    assert (facts["concepts"], facts["steps"]) == (["star"], 4)  # the profile's, not a number of our own


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a <dog> dog"}, "known concepts: <star>"),
        ({"prompt": "a <star> star", "steps": 100000}, "steps"),
        ({"prompt": "a <star> star", "guidance": "much"}, "guidance"),
        ({"seed": 1}, "prompt"),
    ],
)
def test_a_wrong_request_is_the_callers(address: str, row: dict[str, Any], named: str) -> None:
    status, answer = post(address, {"dataframe_records": [row]})
    assert status == 400
    assert named in answer["message"]


def test_an_adapter_that_draws_something_else_is_not_servable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = PromotionSettings(minimum_effect=255.0)
    version = registry.version(store, "star", 1)
    with servability.FreshProcess() as early:
        early.start()  # what it imports by then is what a late one would
        found = servability.probe(store, version, early)
    assert servability.judge(found, PromotionSettings()).passed
    refused = servability.judge(found, strict)
    assert not refused.passed
    assert "changes the base's picture by" in refused.reason
    monkeypatch.setenv("PURECC_BASE", "/nowhere")
    with servability.FreshProcess() as late:
        found = servability.probe(store, version, late)
    assert "cannot serve" in servability.judge(found, strict).reason


@pytest.mark.parametrize(("lacks", "missing"), [("peft", "peft"), ("", "mlflow")])
def test_a_model_that_states_too_little_is_not_servable(store: Store, lacks: str, missing: str) -> None:
    """The process that waits has what is usually stated; one with less, or nothing, says so, and is tried with that."""
    (file,) = (store.root / "mlruns" / "artifacts").rglob("requirements.txt")
    stated = file.read_text()
    file.write_text("".join(line for line in stated.splitlines(keepends=True) if not line.startswith(lacks)))
    try:
        version = registry.version(store, "star", 1)
        with servability.FreshProcess() as early:
            early.start()
            found = servability.probe(store, version, early)
    finally:
        file.write_text(stated)
    assert f"No module named '{missing}'" in servability.judge(found, PromotionSettings()).reason


def test_a_process_that_is_never_asked_ends_with_its_owner() -> None:
    program = "import os, sys\nfrom components.tracking.servability import FreshProcess\n"
    program += "fresh = FreshProcess()\nfresh.start()\nprint(fresh.pid, flush=True)\nos._exit(9)"  # as if killed
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    pid = int(done.stdout)
    deadline = time.monotonic() + 120
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.2)
