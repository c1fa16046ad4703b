"""The learning side stands alone: it imports where orchestration, tracking and data tools are not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ABSENT = ("prefect", "mlflow", "dvc", "great_expectations")

# Takes the place of the path finder, so that for this process the packages are not installed: importing them fails and
# `importlib.util.find_spec`, by which libraries look for optional parts, gives None.
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def run(program: str, folder: Path) -> str:
    """Standard output of a Python program in a process of its own."""
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + textwrap.dedent(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ABSENT)
def test_the_simulated_absence_works(package: str, tmp_path: Path) -> None:
    program = f"""
    import importlib.util
    assert importlib.util.find_spec({package!r}) is None
    try:
        import {package}
    except ModuleNotFoundError:
        print("absent")
    """
    assert run(program, tmp_path) == "absent\n"


def test_every_module_of_the_learning_side_imports_without_the_tools_around_it(tmp_path: Path) -> None:
    program = f"""
    import importlib, json, pkgutil
    found = []
    for package in ("backbones", "learning", "evaluation", "world", "export"):
        top = importlib.import_module("components." + package)
        found += [top.__name__, *(info.name for info in pkgutil.walk_packages(top.__path__, top.__name__ + "."))]
    for name in found:
        importlib.import_module(name)
    leaked = sorted(name for name in sys.modules if name.partition(".")[0] in {ABSENT!r})
    print(json.dumps([found, leaked]))
    """
    found, leaked = json.loads(run(program, tmp_path).splitlines()[-1])
    assert {"components.backbones.sd3", "components.evaluation.evaluate", "components.learning.objective"} <= set(found)
    assert leaked == []


def test_telemetry_is_off_before_any_dependency_is_imported(tmp_path: Path) -> None:
    program = """
    import os
    names = ["DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY",
             "DVC_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"]
    for name in names:
        os.environ.pop(name, None)
    import components
    print({name: os.environ.get(name) for name in names})
    heavy = {"torch", "onnxruntime", "diffusers", "transformers", "huggingface_hub", "prefect", "mlflow", "dvc"}
    assert not heavy & set(sys.modules)
    """
    assert run(program, tmp_path).strip() == str(
        {
            "DO_NOT_TRACK": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "ORT_DISABLE_TELEMETRY": "1",
            "DVC_NO_ANALYTICS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
        }
    )


def test_a_choice_of_the_user_stands(tmp_path: Path) -> None:
    program = """
    import os
    os.environ["HF_HUB_OFFLINE"] = "0"
    import flows
    print(os.environ["HF_HUB_OFFLINE"])
    """
    assert run(program, tmp_path) == "0\n"
