"""The model behind `models:/purecc-<concept>@champion`: requests in, PNG bytes out (MLflow models-from-code).

The adapter travels inside the model, and so does the code that it needs; the base is referenced by path or hub id and
by fingerprint. `PURECC_BASE` says where the base lies, if not below the project that holds the tracking store,
`PURECC_HOME` or the working directory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel


class PureCCModel(PythonModel):
    """One base, one adapter."""

    def load_context(self, context: Any) -> None:
        """Load the base and the adapter.

        Raises:
            IntegrityError: the adapter's files are not those of its manifest.
            InvalidInput: the base is not the one that the adapter was trained on, or is not found.
        """
        from components.backbones.sd3 import SD3Backbone
        from components.errors import InvalidInput
        from components.serving.service import ImageService
        from components.settings import BaseSettings, SamplingSettings

        reference = json.loads(Path(context.artifacts["base"]).read_text(encoding="utf-8"))
        settings = BaseSettings.model_validate(reference["settings"])
        where = os.environ.get("PURECC_BASE") or _locate(settings.path, Path(context.artifacts["base"]))
        self.concept = str(reference["concept"])
        backbone = SD3Backbone.load(settings.model_copy(update={"path": where}))
        if backbone.fingerprint != reference["fingerprint"]:
            found, needed = backbone.fingerprint[:12], reference["fingerprint"][:12]
            raise InvalidInput(
                f"the base at {where!r} is {found}, the adapter was trained on {needed}",
                field="PURECC_BASE",
                mend="set PURECC_BASE to the folder of the right base",
            )
        self.service = ImageService(backbone, SamplingSettings.model_validate(reference["sampling"]))
        self.service.add(self.concept, Path(context.artifacts["adapter"]))

    # Without type hints on purpose: MLflow would make a schema of them, in the place of the signature that is logged.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A frame with `prompt` and, if wished, `seed`, `steps`, `guidance`, `negative_prompt` -> a frame of one row
        each: `png` (bytes) and `facts` (JSON).

        A mapping of one request, or a list of prompts, is taken as well where MLflow lets it through.

        Raises:
            MlflowException: a request is not well-formed (INVALID_PARAMETER_VALUE: a server answers with 400).
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        from components.errors import InvalidInput
        from components.serving.requests import read_requests

        if hasattr(model_input, "to_dict"):
            rows = model_input.to_dict("records")
        else:
            items = [model_input] if isinstance(model_input, dict | str) else list(model_input)
            rows = [{"prompt": item} if isinstance(item, str) else item for item in items]
        try:
            drawn = [self.service.draw(request, adapter=self.concept) for request in read_requests(rows)]
        except InvalidInput as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"png": [each.png for each in drawn], "facts": [json.dumps(each.facts) for each in drawn]})


def _locate(path: str, near: Path) -> str:
    """`path` as it stands, or below the folder above the model that has it (the project of an embedded store)."""
    homes = [Path(home) for home in (os.environ.get("PURECC_HOME"), ".") if home]
    for folder in (*homes, *near.resolve().parents):
        if (folder / path).is_dir():
            return str((folder / path).resolve())
    return path


mlflow.models.set_model(PureCCModel())
