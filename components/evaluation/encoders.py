"""Image and text encoders by folder or hub id, through transformers' Auto classes with the PIL image processors.

Every encoder says what it is: the id it was loaded by, a digest of its weights and its preprocessing. Public
implementations of the same metric differ in just these, so they are part of every result.

Shape suffixes: N images or texts, D feature width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from components.errors import InvalidInput
from components.evaluation import published
from components.evaluation.pictures import Picture
from components.model_folder import is_weight_file

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


def resolve(path: str, root: Path, field: str = "evaluation.evaluators") -> str:
    """A folder (or file of weights) of the project, an absolute one, or else a hub id as it stands.

    Raises:
        InvalidInput: it can only be meant as a folder or file, and there is none.
    """
    folder = root / path
    if folder.is_dir() or (is_weight_file(path) and folder.is_file()):
        return str(folder)
    slashes = 2 if is_weight_file(path) else 1  # of the hub: owner/repository/file, owner/repository
    if path.count("/") > slashes or path.startswith((".", "/")):
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


@dataclass(frozen=True)
class ClipParts:
    """A CLIP's model, and what turns pictures and texts into its inputs.

    Attributes:
        model: transformers' CLIPModel, or one with its interface.
        images: the image processor.
        tokenizer: the tokenizer.
        whole_side: if given, pictures are first fitted whole into a black square of that side, pixels.
    """

    model: Any
    images: Any
    tokenizer: Any
    whole_side: int | None = None

    @staticmethod
    def of_folder(path: str, device: torch.device) -> ClipParts:
        """A CLIP in transformers' layout, by folder or hub id."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        images = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
        tokenizer = from_hub_or_folder(AutoTokenizer, path)
        model = load_model(AutoModel, path, device)
        if not hasattr(model, "get_image_features"):
            raise InvalidInput(
                f"{type(model).__name__} does not join pictures and texts",
                file=path,
                field="evaluation.evaluators.clip",
                mend="name a CLIP",
            )
        return ClipParts(model, images, tokenizer)

    @staticmethod
    def of_hps(path: str, tokenizer: str, device: torch.device) -> ClipParts:
        """HPSv2.1's published state dict, which comes without a tokenizer: that of another CLIP is the same.

        Raises:
            InvalidInput: the tokenizer's vocabulary is not the model's.
        """
        from transformers import AutoTokenizer

        model, images = published.load_hps(path)
        words = from_hub_or_folder(AutoTokenizer, tokenizer)
        text = model.config.text_config
        if len(words) != text.vocab_size or words.eos_token_id != text.eos_token_id:
            raise InvalidInput(
                f"the tokenizer of {tokenizer} has {len(words)} entries, the model {text.vocab_size}",
                file=path,
                field="evaluation.evaluators.hps",
                mend="name a CLIP with OpenAI's vocabulary as evaluation.evaluators.clip",
            )
        model = model.to(device).eval().requires_grad_(False)
        return ClipParts(model, images, words, model.config.vision_config.image_size)


class ClipEncoder:
    """A CLIP: pictures and texts in one space. Also the preference models that are one (PickScore, HPSv2.1)."""

    def __init__(self, path: str, device: torch.device, batch_size: int = 32, parts: ClipParts | None = None):
        parts = parts or ClipParts.of_folder(path, device)
        self._parts, self._model = parts, parts.model
        self._device, self._batch_size = device, batch_size
        self._length: int = self._model.config.text_config.max_position_embeddings
        self.logit_scale: float = float(self._model.logit_scale.detach().exp())
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "feature": "projected image and text features",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(parts.images),
            "text_length": self._length,
        }
        if parts.whole_side is not None:
            self.info["preprocessing"]["whole_picture_in_square"] = parts.whole_side

    @torch.inference_mode()
    def encode_images(self, pictures: Sequence[Picture]) -> Features:
        side = self._parts.whole_side
        rows = []
        for where in batches(len(pictures), self._batch_size):
            images = pil(pictures[where])
            if side is not None:
                images = [fit(image, side) for image in images]
            pixels = self._parts.images(images=images, return_tensors="pt")["pixel_values"]
            rows.append(self._model.get_image_features(pixel_values=pixels.to(self._device)).pooler_output.cpu())
        return unit(torch.cat(rows))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Features:
        rows = []
        for where in batches(len(texts), self._batch_size):
            tokens = self._parts.tokenizer(
                list(texts[where]),
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            inputs = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask") if name in tokens}
            rows.append(self._model.get_text_features(**inputs).pooler_output.cpu())
        return unit(torch.cat(rows))


def fit(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, its longer side brought to `side` pixels, in the middle of a black square."""
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
    return square
