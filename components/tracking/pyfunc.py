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


class _Flavor:
    """`mlflow.pyfunc` for `Model.log`, less the trial of the input example.

    MLflow would load the model and draw the example here, beside the base that is in memory already, and
    `mlflow.pyfunc.log_model` knows no way to say no. The servability check has a process of its own for it.
    """

    @staticmethod
    def save_model(*, validate_serving_input: bool, **more: Any) -> Any:
        import mlflow

        return mlflow.pyfunc.save_model(**more)


def log(concept: str, adapter: Path, base: Mapping[str, Any], recording: Path | None = None) -> str:
    """Log the model to the active MLflow run and return its id (`m-...`)."""
    import pandas as pd
    from mlflow.models import Model

    noisy = logging.getLogger("mlflow")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    sampling = base.get("sampling", {})
    stated = {"steps": sampling.get("steps", 28), "guidance": sampling.get("guidance_scale", 4.0)}
    example = pd.DataFrame([{"prompt": f"a <{concept}> on the left", "seed": 1, **stated, "negative_prompt": ""}])
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
            info = Model.log(
                None,
                name="model",
                flavor=_Flavor,
                flavor_name="pyfunc.ModelFromCode",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts=artifacts,
                code_paths=[str(_code(Path(folder)))],
                pip_requirements=requirements(),
                signature=signature(),
                input_example=example,
                validate_serving_input=False,
            )
    finally:
        noisy.setLevel(level)
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
