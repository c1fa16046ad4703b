"""The style encoder behind CSD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from components.evaluation import published
from components.evaluation.encoders import (
    Features,
    batches,
    from_hub_or_folder,
    load_model,
    pil,
    preprocessing_of,
    unit,
    weights_digest,
)
from components.evaluation.pictures import Picture
from components.model_folder import is_weight_file


class StyleEncoder:
    """CSD: a CLIP picture tower whose projection was trained to tell styles apart, whatever is shown.

    By the published state dict, or a CLIPVisionModelWithProjection in transformers' layout.
    """

    def __init__(self, path: str, device: torch.device, batch_size: int = 32):
        from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

        if is_weight_file(path):
            model, self._processor = published.load_csd(path)
            self._model = model.to(device).eval().requires_grad_(False)
        else:
            self._processor = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
            self._model = load_model(CLIPVisionModelWithProjection, path, device)
        self._device, self._batch_size = device, batch_size
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "feature": "style projection",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(self._processor),
        }

    @torch.inference_mode()
    def encode_images(self, pictures: Sequence[Picture]) -> Features:
        rows = []
        for where in batches(len(pictures), self._batch_size):
            pixels = self._processor(images=pil(pictures[where]), return_tensors="pt")["pixel_values"]
            rows.append(self._model(pixel_values=pixels.to(self._device)).image_embeds.cpu())
        return unit(torch.cat(rows))
