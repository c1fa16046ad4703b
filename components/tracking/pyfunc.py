"""Logging of the model that consumers load by alias: adapter folder, a reference to the base, and our code."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.provenance import library_versions

_COMPONENTS = Path(__file__).parents[1]
_REQUIREMENTS = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "pillow",
    "pydantic",
    "pyyaml",
    "filelock",
)


def log(concept: str, adapter: Path, base: Mapping[str, Any]) -> str:
    """Log the model to the active MLflow run and return its id (`m-...`)."""
    import mlflow

    requirements = [f"mlflow=={mlflow.__version__}"]
    requirements += [f"{name}=={found}" for name, found in library_versions(_REQUIREMENTS).items()]
    noisy = logging.getLogger("mlflow")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="purecc-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # MLflow files an artifact under the name its source has, not under its key
            named = shutil.copytree(adapter, Path(folder) / "adapter")
            reference = Path(folder) / "base.json"
            reference.write_text(json.dumps({"concept": concept, **base}, indent=2, sort_keys=True), encoding="utf-8")
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"adapter": str(named), "base": str(reference)},
                code_paths=[str(_COMPONENTS)],
                pip_requirements=requirements,
            )
    finally:
        noisy.setLevel(level)
    return str(info.model_id)
