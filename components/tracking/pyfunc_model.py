"""The model behind `models:/purecc-<concept>@champion`: prompts in, PNG bytes out (MLflow models-from-code).

The adapter travels inside the model; the base is referenced by path or hub id and by fingerprint. `PURECC_BASE` says
where the base lies, if not below the project that holds the tracking store, `PURECC_HOME` or the working directory.
"""

from __future__ import annotations

import io
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
            InvalidInput: the base is not the one that the adapter was trained on, or is not found.
        """
        from components.backbones.sd3 import SD3Backbone
        from components.errors import InvalidInput
        from components.settings import BaseSettings

        reference = json.loads(Path(context.artifacts["base"]).read_text(encoding="utf-8"))
        settings = BaseSettings.model_validate(reference["settings"])
        where = os.environ.get("PURECC_BASE") or _locate(settings.path, Path(context.artifacts["base"]))
        self.concept = str(reference["concept"])
        self.sampling = reference["sampling"]
        self.backbone = SD3Backbone.load(settings.model_copy(update={"path": where}))
        if self.backbone.fingerprint != reference["fingerprint"]:
            found, needed = self.backbone.fingerprint[:12], reference["fingerprint"][:12]
            raise InvalidInput(
                f"the base at {where!r} is {found}, the adapter was trained on {needed}",
                field="PURECC_BASE",
                mend="set PURECC_BASE to the folder of the right base",
            )
        self.backbone.load_adapter(Path(context.artifacts["adapter"]), self.concept)

    # MLflow makes a schema of type hints; a list of prompts and a frame of prompts and seeds have none in common.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A list of prompts, or a frame with the column `prompt` and, if wished, `seed` -> one PNG per row."""
        if hasattr(model_input, "columns"):
            prompts = [str(prompt) for prompt in model_input["prompt"]]
            seeds = [int(seed) for seed in model_input["seed"]] if "seed" in model_input.columns else None
        else:
            prompts, seeds = [str(prompt) for prompt in model_input], None
        images_BCHW = self.backbone.sample(
            self.backbone.encode_text(prompts),
            self.backbone.encode_text([""] * len(prompts)),
            seeds=seeds or [int((params or {}).get("seed", 0))] * len(prompts),
            steps=int(self.sampling["steps"]),
            guidance_scale=float(self.sampling["guidance_scale"]),
            adapter=self.concept,
        )
        return [_png(image_CHW) for image_CHW in images_BCHW]


def _png(image_CHW: Any) -> bytes:
    from PIL import Image

    pixels_HWC = ((image_CHW.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(stream, format="PNG")
    return stream.getvalue()


def _locate(path: str, near: Path) -> str:
    """`path` as it stands, or below the folder above the model that has it (the project of an embedded store)."""
    homes = [Path(home) for home in (os.environ.get("PURECC_HOME"), ".") if home]
    for folder in (*homes, *near.resolve().parents):
        if (folder / path).is_dir():
            return str((folder / path).resolve())
    return path


mlflow.models.set_model(PureCCModel())
