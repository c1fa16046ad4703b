"""The learning side stands alone: it imports where orchestration, tracking and data tools are not installed."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]

ABSENT = ("prefect", "mlflow", "dvc", "great_expectations")


@pytest.mark.parametrize("package", ABSENT)
def test_the_simulated_absence_works(package: str, without_tools: Run) -> None:
    program = f"""
    import importlib.util
    assert importlib.util.find_spec({package!r}) is None
    try:
        import {package}
    except ModuleNotFoundError:
        print("absent")
    """
    assert without_tools(program) == "absent\n"


def test_every_module_of_the_learning_side_imports_without_the_tools_around_it(without_tools: Run) -> None:
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
    found, leaked = json.loads(without_tools(program).splitlines()[-1])
    assert {"components.backbones.sd3", "components.evaluation.evaluate", "components.learning.objective"} <= set(found)
    assert leaked == []


def test_telemetry_is_off_before_any_dependency_is_imported(without_tools: Run) -> None:
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
    assert without_tools(program).strip() == str(
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


def test_a_choice_of_the_user_stands(without_tools: Run) -> None:
    program = """
    import os
    os.environ["HF_HUB_OFFLINE"] = "0"
    import flows
    print(os.environ["HF_HUB_OFFLINE"])
    """
    assert without_tools(program) == "0\n"


def test_the_import_rules_forget_no_module(repository: Path) -> None:
    rules = configparser.ConfigParser()
    rules.read(repository / ".importlinter")
    found = {
        f"components.{path.stem}" for path in (repository / "components").iterdir() if path.stem.strip("_") == path.stem
    }
    for contract, allowed in (("mlflow", "components.tracking"), ("data-tools", "components.concepts")):
        listed = set(rules[f"importlinter:contract:{contract}"]["source_modules"].split())
        assert listed == found - {allowed}
