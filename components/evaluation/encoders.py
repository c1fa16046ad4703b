"""Image and text encoders by folder or hub id, through transformers' Auto classes with the PIL image processors.

Every encoder says what it is: the id it was loaded by, a digest of its weights and its preprocessing. Public
implementations of the same metric differ in just these, so they are part of every result.

Shape suffixes: N images or texts, D feature width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from components.errors import InvalidInput
from components.evaluation.pictures import Picture

Features = NDArray[np.float64]
"""(N, D), each row of unit length."""

_PREPROCESSING = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size",
)  # fmt: skip


class ImageEncoder(Protocol):
    """Turns pictures into features whose cosine says how alike two pictures are."""

    @property
    def info(self) -> dict[str, Any]: ...

    def encode_images(self, pictures: Sequence[Picture]) -> Features: ...


class PreferenceScorer(Protocol):
    """Scores how well a picture serves a prompt; higher is better."""

    @property
    def info(self) -> dict[str, Any]: ...

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(N,), one score per picture with its own prompt."""
        ...


def resolve(path: str, root: Path, field: str = "evaluation.evaluators") -> str:
    """A folder of the project, an absolute folder, or else a hub id as it stands.

    Raises:
        InvalidInput: it can only be meant as a folder, and there is none.
    """
    folder = root / path
    if folder.is_dir():
        return str(folder)
    if path.count("/") > 1 or path.startswith((".", "/")):
        raise InvalidInput("no such evaluator", file=folder, field=field, mend="correct it in the profile")
    return path


def weights_digest(model: nn.Module) -> str:
    """Hex SHA-256 over the name, type, shape and bytes of every tensor of the loaded model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_of(processor: Any) -> dict[str, Any]:
    """What an image processor does to a picture, as JSON-able values."""
    known = json.loads(processor.to_json_string())
    return {name: known[name] for name in _PREPROCESSING if known.get(name) is not None}


def from_hub_or_folder(loader: Any, path: str, **keywords: Any) -> Any:
    """`loader.from_pretrained(path)`, its failure told as an error that names the evaluator.

    Raises:
        InvalidInput: nothing usable stands at that folder or under that hub id.
    """
    try:
        return loader.from_pretrained(path, **keywords)
    except (OSError, ValueError, KeyError) as error:
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            f"cannot be loaded: {summary}",
            file=path,
            field="evaluation.evaluators",
            mend="name a complete folder, or a hub id in the local cache (HF_HUB_OFFLINE=0 allows a download)",
        ) from error


def load_model(loader: Any, path: str, device: torch.device) -> Any:
    """A model in float32 evaluation mode on `device`; every weight of it must be in the checkpoint."""
    model, report = from_hub_or_folder(loader, path, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing:
        # transformers would fill these with random numbers and warn; a metric must not rest on them.
        raise InvalidInput(
            f"{len(missing)} weights are missing or misshapen, first {missing[0]!r}",
            file=path,
            field="evaluation.evaluators",
            mend="name the checkpoint of this very architecture",
        )
    return model.to(device).eval().requires_grad_(False)


def pil(pictures: Sequence[Picture]) -> list[Image.Image]:
    """The pictures as PIL images."""
    return [Image.fromarray(picture, "RGB") for picture in pictures]


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` items in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def unit(features_ND: Tensor) -> Features:
    """Rows scaled to unit length, in double precision."""
    values_ND = features_ND.detach().cpu().numpy().astype(np.float64)
    norms_N1 = np.linalg.norm(values_ND, axis=1, keepdims=True)
    return cast(Features, values_ND / np.maximum(norms_N1, np.finfo(np.float64).tiny))


class FeatureEncoder:
    """The class token of a vision transformer's last layer (DINO, DINOv2, ViT)."""

    def __init__(self, path: str, device: torch.device, batch_size: int = 32):
        from transformers import AutoImageProcessor, AutoModel

        self._processor = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
        self._model = load_model(AutoModel, path, device)
        self._device, self._batch_size = device, batch_size
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "feature": "class token of the last hidden state",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(self._processor),
        }

    @torch.inference_mode()
    def encode_images(self, pictures: Sequence[Picture]) -> Features:
        parts = []
        for where in batches(len(pictures), self._batch_size):
            pixels = self._processor(images=pil(pictures[where]), return_tensors="pt")["pixel_values"]
            parts.append(self._model(pixel_values=pixels.to(self._device)).last_hidden_state[:, 0].cpu())
        return unit(torch.cat(parts))


class ClipEncoder:
    """A CLIP: pictures and texts in one space. Also the preference models that are one (PickScore)."""

    def __init__(self, path: str, device: torch.device, batch_size: int = 32):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self._images = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
        self._tokenizer = from_hub_or_folder(AutoTokenizer, path)
        self._model = load_model(AutoModel, path, device)
        if not hasattr(self._model, "get_image_features"):
            raise InvalidInput(
                f"{type(self._model).__name__} does not join pictures and texts",
                file=path,
                field="evaluation.evaluators.clip",
                mend="name a CLIP",
            )
        self._device, self._batch_size = device, batch_size
        text = self._model.config.text_config
        self._length: int = text.max_position_embeddings
        self.logit_scale: float = float(self._model.logit_scale.detach().exp())
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "feature": "projected image and text features",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(self._images),
            "text_length": self._length,
        }

    @torch.inference_mode()
    def encode_images(self, pictures: Sequence[Picture]) -> Features:
        parts = []
        for where in batches(len(pictures), self._batch_size):
            pixels = self._images(images=pil(pictures[where]), return_tensors="pt")["pixel_values"]
            parts.append(self._model.get_image_features(pixel_values=pixels.to(self._device)).pooler_output.cpu())
        return unit(torch.cat(parts))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Features:
        parts = []
        for where in batches(len(texts), self._batch_size):
            tokens = self._tokenizer(
                list(texts[where]),
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            inputs = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask") if name in tokens}
            parts.append(self._model.get_text_features(**inputs).pooler_output.cpu())
        return unit(torch.cat(parts))


class ClipPreference:
    """A preference model in CLIP's layout: `scale` times the cosine of picture and prompt.

    PickScore multiplies by its own exp(logit_scale); HPSv2.1 is reported as the cosine x 100 (METHOD section 8).
    """

    def __init__(self, path: str, device: torch.device, batch_size: int = 32, scale: float | None = None):
        self._encoder = ClipEncoder(path, device, batch_size)
        self._scale = self._encoder.logit_scale if scale is None else scale
        self.info: dict[str, Any] = {**self._encoder.info, "scale": self._scale}

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        images_ND, texts_ND = self._encoder.encode_images(pictures), self._encoder.encode_texts(prompts)
        return cast("NDArray[np.float64]", self._scale * (images_ND * texts_ND).sum(axis=1))
