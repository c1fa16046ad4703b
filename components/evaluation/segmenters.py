"""Segmenters: pictures -> segments (a mask, and a name where the model gives one).

The implementation follows from the checkpoint's own `model_type`: SAM's automatic mask generation, or any semantic
segmentation model of transformers, whose class map is cut into connected components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from components.errors import InvalidInput
from components.evaluation.encoders import (
    batches,
    from_hub_or_folder,
    load_model,
    pil,
    preprocessing_of,
    weights_digest,
)
from components.evaluation.pictures import Picture

Mask = NDArray[np.bool_]
SMALLEST = 0.002
"""Segments below this share of the picture are noise (8 pixels of 64 x 64)."""


@dataclass(frozen=True)
class Segment:
    """A region of a picture: (H, W) bool, and its name if the segmenter names what it sees."""

    mask: Mask
    name: str | None = None


class Segmenter(Protocol):
    @property
    def info(self) -> dict[str, Any]: ...

    @property
    def names(self) -> tuple[str, ...]:
        """What the segmenter can name; empty if it cuts without naming."""
        ...

    def segments(self, pictures: Sequence[Picture]) -> list[list[Segment]]: ...


def masks(segmenter: Segmenter, pictures: Sequence[Picture]) -> list[list[Mask]]:
    """The bare masks of each picture."""
    return [[segment.mask for segment in found] for found in segmenter.segments(pictures)]


def load_segmenter(path: str, device: torch.device, batch_size: int = 16) -> Segmenter:
    """The segmenter at a folder or hub id.

    Raises:
        InvalidInput: the checkpoint is no SAM and no semantic segmentation model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    model_type = from_hub_or_folder(AutoConfig, path).model_type
    if model_type == "sam":
        return SamSegmenter(path, device)
    if model_type in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
        return SemanticSegmenter(path, device, batch_size)
    raise InvalidInput(
        f"model_type {model_type!r} is no segmenter known here",
        file=path,
        field="evaluation.evaluators.segmenter",
        mend="name a SAM or a semantic segmentation model in transformers layout",
    )


def connected_components(classes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Number the 4-connected regions of equal class, 0 upwards in reading order of their first pixels."""
    regions = np.zeros(classes.shape, dtype=np.int64)
    count = 0
    for value in np.unique(classes):
        found, more = ndimage.label(classes == value)
        regions += np.where(found > 0, found + count, 0)
        count += more
    _, first, number = np.unique(regions, return_index=True, return_inverse=True)
    return first.argsort().argsort()[number].reshape(classes.shape)


class SemanticSegmenter:
    """Connected components of the predicted class map."""

    def __init__(self, path: str, device: torch.device, batch_size: int = 16):
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        self._processor = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
        self._model = load_model(AutoModelForSemanticSegmentation, path, device)
        self._device, self._batch_size = device, batch_size
        labels: dict[int, str] = self._model.config.id2label
        self.names = tuple(labels[key] for key in sorted(labels))
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "masks": f"4-connected components of the class map, at least {SMALLEST:.1%} of the picture",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(self._processor),
        }

    @torch.inference_mode()
    def class_maps(self, pictures: Sequence[Picture]) -> list[NDArray[np.int64]]:
        """(H, W) class ids for each picture, at its own size."""
        maps: list[NDArray[np.int64]] = []
        for where in batches(len(pictures), self._batch_size):
            pixels = self._processor(images=pil(pictures[where]), return_tensors="pt")["pixel_values"]
            logits_BKhw: Tensor = self._model(pixel_values=pixels.to(self._device)).logits.float()
            for logits_Khw, picture in zip(logits_BKhw, pictures[where], strict=True):
                resized = torch.nn.functional.interpolate(logits_Khw[None], picture.shape[:2], mode="bilinear")[0]
                maps.append(resized.argmax(dim=0).cpu().numpy())
        return maps

    def segments(self, pictures: Sequence[Picture]) -> list[list[Segment]]:
        found: list[list[Segment]] = []
        for classes in self.class_maps(pictures):
            numbers = connected_components(classes)
            areas = np.bincount(numbers.reshape(-1))
            large = np.flatnonzero(areas >= SMALLEST * numbers.size)
            segments = []
            for number in large:
                mask = numbers == number
                segments.append(Segment(mask, self.names[int(classes[mask][0])]))
            found.append(segments)
        return found


class SamSegmenter:
    """SAM's automatic mask generation: a grid of point prompts, filtered by predicted IoU and stability, then NMS.

    Written out because transformers' own mask-generation post-processing needs torchvision.
    """

    names: tuple[str, ...] = ()

    def __init__(
        self,
        path: str,
        device: torch.device,
        *,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        predicted_iou: float = 0.88,
        stability: float = 0.95,
        overlap: float = 0.7,
    ):
        from transformers import AutoImageProcessor, SamModel

        self._processor = from_hub_or_folder(AutoImageProcessor, path, backend="pil")
        self._model = load_model(SamModel, path, device)
        self._device = device
        self._points_per_side, self._points_per_batch = points_per_side, points_per_batch
        self._predicted_iou, self._stability, self._overlap = predicted_iou, stability, overlap
        self.info: dict[str, Any] = {
            "id": path,
            "architecture": type(self._model).__name__,
            "masks": f"{points_per_side} x {points_per_side} points, predicted IoU >= {predicted_iou}, "
            f"stability >= {stability}, NMS at {overlap}, at least {SMALLEST:.1%} of the picture",
            "weights_sha256": weights_digest(self._model),
            "preprocessing": preprocessing_of(self._processor),
        }

    def segments(self, pictures: Sequence[Picture]) -> list[list[Segment]]:
        return [[Segment(mask) for mask in self._masks(picture)] for picture in pictures]

    @torch.inference_mode()
    def _masks(self, picture: Picture) -> list[Mask]:
        inputs = self._processor(images=pil([picture]), return_tensors="pt")
        fed = [int(side) for side in inputs["reshaped_input_sizes"][0]]
        embedding = self._model.get_image_embeddings(inputs["pixel_values"].to(self._device))
        centres = (np.arange(self._points_per_side) + 0.5) / self._points_per_side
        points = np.stack(np.meshgrid(centres * fed[1], centres * fed[0]), axis=-1).reshape(-1, 2)
        kept: list[Mask] = []
        scores: list[float] = []
        for where in batches(len(points), self._points_per_batch):
            prompts = torch.as_tensor(points[where], dtype=torch.float32, device=self._device)[None, :, None]
            output = self._model(input_points=prompts, image_embeddings=embedding, multimask_output=True)
            ious = output.iou_scores[0].reshape(-1)
            good = ious >= self._predicted_iou
            if not good.any():
                continue
            low = output.pred_masks[0].flatten(0, 1)[good][None]
            # The logits, at the picture's own size: the threshold is applied at several levels below.
            logits = self._processor.post_process_masks(
                [low], [picture.shape[:2]], [fed], binarize=False, pad_size=self._processor.pad_size
            )[0][0]
            inner, outer = (logits > 1).flatten(1).sum(1), (logits > -1).flatten(1).sum(1)
            binary = logits > 0
            fine = (inner >= self._stability * outer) & (binary.flatten(1).sum(1) >= SMALLEST * binary[0].numel())
            kept += list(binary[fine].cpu().numpy())
            scores += ious[good][fine].cpu().tolist()
        return suppress(kept, scores, self._overlap)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a mask that is not empty, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def suppress(candidates: Sequence[Mask], scores: Sequence[float], overlap: float) -> list[Mask]:
    """Greedy non-maximum suppression on the masks' boxes, best score first."""
    if not candidates:
        return []
    boxes = np.array([box_of(mask) for mask in candidates], dtype=np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-np.asarray(scores), kind="stable")
    alive = np.ones(len(order), dtype=bool)
    chosen: list[Mask] = []
    for index in order:
        if not alive[index]:
            continue
        chosen.append(candidates[index])
        top_left = np.maximum(boxes[index, :2], boxes[:, :2])
        bottom_right = np.minimum(boxes[index, 2:], boxes[:, 2:])
        common = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
        alive &= common / (areas[index] + areas - common) <= overlap
    return chosen
