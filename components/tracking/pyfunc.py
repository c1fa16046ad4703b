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
_CODE = ("backbones", "concepts", "serving")
"""Packages that serving needs; the model carries no training code and nothing that imports the orchestrator."""
_REQUIREMENTS = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
)


def requirements() -> list[str]:
    """What the model needs, in the versions that it was judged with (less the build tag of a CPU or CUDA wheel)."""
    found = library_versions(("mlflow", *_REQUIREMENTS))
    return [f"{name}=={version.partition('+')[0]}" for name, version in found.items()]


def signature() -> Any:
    """What the model takes and gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    # MLflow's own check of a number knows no gaps, and takes 4 for no number where 4.0 is one: ours does that.
    optional = ("seed", "steps", "guidance", "negative_prompt")
    takes = [ColSpec(DataType.string, "prompt"), *(ColSpec(AnyType(), name, required=False) for name in optional)]
    gives = [ColSpec(DataType.binary, "png"), ColSpec(DataType.string, "facts")]
    return ModelSignature(inputs=Schema(takes), outputs=Schema(gives))


def log(concept: str, adapter: Path, base: Mapping[str, Any], recording: Path | None = None) -> str:
    """Log the model to the active MLflow run and return its id (`m-...`)."""
    import mlflow
    import pandas as pd

    noisy = logging.getLogger("mlflow")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    example = pd.DataFrame([{"prompt": f"a <{concept}> on the left", "seed": 1, "steps": 28, "guidance": 4.0}])
    try:
        with tempfile.TemporaryDirectory(prefix="purecc-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # MLflow files an artifact under the name its source has, not under its key
            artifacts = {"adapter": str(shutil.copytree(adapter, Path(folder) / "adapter"))}
            if recording is not None:
                artifacts["recording"] = str(shutil.copytree(recording, Path(folder) / "recording"))
            reference = Path(folder) / "base.json"
            reference.write_text(json.dumps({"concept": concept, **base}, indent=2, sort_keys=True), encoding="utf-8")
            artifacts["base"] = str(reference)
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts=artifacts,
                code_paths=[str(_code(Path(folder)))],
                pip_requirements=requirements(),
                signature=signature(),
            )
    finally:
        noisy.setLevel(level)
    _ = example
    return str(info.model_id)


def _code(folder: Path) -> Path:
    """The part of our code that serving needs, as a package `components`."""
    code = folder / "code" / "components"
    code.mkdir(parents=True)
    for file in _COMPONENTS.glob("*.py"):
        shutil.copy2(file, code)
    for package in _CODE:
        shutil.copytree(_COMPONENTS / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    return code
