"""Nothing tries the network, or writes telemetry, when everything that is needed is local.

The programs run in processes of their own under `network_guard`; processes that they start inherit it. So does the
`customize` that the tests of the flows begin with (`integration/flows/conftest.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from network_guard import network_guard

IMPORTS = """
import importlib, pkgutil
import components, flows
import diffusers, transformers, peft, accelerate, prefect, mlflow, dvc.api, great_expectations, onnxruntime
for top in (components, flows):
    for module in pkgutil.walk_packages(top.__path__, top.__name__ + "."):
        importlib.import_module(module.name)
"""

GENERATION = """
import sys
from components.backbones.sd3 import SD3Backbone
from components.settings import BaseSettings
base = BaseSettings(path=sys.argv[1], resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")
backbone = SD3Backbone.load(base, parts=("text", "vae", "transformer"))
text, negative = backbone.encode_text(["a red star on the left, brick background"]), backbone.encode_text([""])
images = backbone.sample(text, negative, seeds=[1], steps=2, guidance_scale=4.0, adapter=None)
assert images.shape == (1, 3, 64, 64), images.shape

from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
pipe("a red star", num_inference_steps=2, height=64, width=64, max_sequence_length=20)
"""

HUB = """
import socket
try:
    socket.create_connection(("huggingface.co", 443), timeout=5)
except OSError as error:
    print(error)
"""


class Offline:
    """Runs programs without a network, in a home folder of their own."""

    def __init__(self, folder: Path, repository: Path):
        self.home, self.log, self.repository = folder / "home", folder / "network.log", repository
        self.home.mkdir()
        guard = network_guard(folder / "guard")
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        self.environment = {
            **kept,
            "HOME": str(self.home),
            "NETWORK_LOG": str(self.log),
            "PYTHONPATH": f"{guard}:{repository}",
            "TMPDIR": str(folder),
        }

    def run(self, *command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    @property
    def attempts(self) -> str:
        """Every attempt to reach another machine, with the stack that made it."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def telemetry_files(self) -> list[Path]:
        """What onnxruntime's telemetry leaves in the home folder: a device id and a database."""
        return [path for path in self.home.rglob("*") if "Microsoft" in path.parts or "onnxruntime" in path.name]


@pytest.fixture
def offline(tmp_path: Path, repository: Path) -> Offline:
    return Offline(tmp_path, repository)


def test_the_guard_refuses_and_records(offline: Offline, tmp_path: Path) -> None:
    done = offline.run(sys.executable, "-c", HUB, cwd=tmp_path)
    assert "refuses getaddrinfo 'huggingface.co'" in done.stdout
    assert "getaddrinfo 'huggingface.co'" in offline.attempts


def test_the_telemetry_that_is_switched_off_would_be_seen(offline: Offline, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    offline.run(sys.executable, "-c", "import onnxruntime", cwd=tmp_path)
    if not offline.telemetry_files:
        pytest.skip("this build of onnxruntime writes no telemetry files")
    shutil.rmtree(offline.home)
    offline.home.mkdir()
    offline.run(sys.executable, "-c", "import components, onnxruntime", cwd=tmp_path)
    assert offline.telemetry_files == []


@pytest.mark.slow
def test_imports_stay_offline(offline: Offline, tmp_path: Path) -> None:
    done = offline.run(sys.executable, "-c", IMPORTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert offline.attempts == ""
    assert offline.telemetry_files == []


@pytest.mark.slow
def test_loading_and_generating_stay_offline(offline: Offline, micro_family: Path, tmp_path: Path) -> None:
    done = offline.run(sys.executable, "-c", GENERATION, str(micro_family), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert offline.attempts == ""
    assert offline.telemetry_files == []


def test_doctor_stays_offline(offline: Offline, project: Path) -> None:
    command = shutil.which("purecc", path=str(Path(sys.executable).parent))
    assert command, "the command is not installed: pip install -e ."
    done = offline.run(command, "doctor", cwd=project, PURECC_HOME=str(project))
    assert done.returncode == 1, done.stderr  # a project without models and data has faults
    assert "dvc pull" in done.stdout + done.stderr
    assert offline.attempts == ""
    assert offline.telemetry_files == []


def test_a_base_that_is_not_there_is_an_error_and_no_download(offline: Offline, tmp_path: Path) -> None:
    program = GENERATION.replace("sys.argv[1]", repr("someone/some-model"))
    done = offline.run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert "someone/some-model" in done.stderr
    assert offline.attempts == ""
