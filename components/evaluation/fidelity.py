"""Fidelity: how alike the customized model's images and the references are.

CLIP-I, DINO and CSD are the mean cosine over all pairs of a generated and a reference picture. On whole pictures they
reward copying the background, so each also comes on the subject alone: cut out by its mask, on grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from components.evaluation.encoders import ClipEncoder, Features
from components.evaluation.pictures import Picture
from components.evaluation.segmenters import Mask, Segment, Segmenter, box_of

OBJECT = "object"
"""The name by which a segmenter that names what it sees calls things that stand before a background."""
_SMALLEST_SUBJECT, _LARGEST_SUBJECT = 0.01, 0.9
GREY = 127


def cosine_to_references(features_ND: Features, references_MD: Features) -> NDArray[np.float64]:
    """(N,): each picture's mean cosine to the references; their mean is the mean over all pairs. Unit rows."""
    return cast("NDArray[np.float64]", (features_ND @ references_MD.T).mean(axis=1))


def cosine_among(references_MD: Features) -> float | None:
    """Mean cosine of distinct references: what a perfect copy of the concept could reach. None for fewer than two."""
    count = len(references_MD)
    if count < 2:
        return None
    cosines_MM = references_MD @ references_MD.T
    return float((cosines_MM.sum() - np.trace(cosines_MM)) / (count * (count - 1)))


@dataclass(frozen=True)
class Layout:
    """What stands where in a picture.

    Attributes:
        segments: every region that the segmenter found.
        foreground: (H, W), the pixels of things, as opposed to background.
        subject: (H, W), the concept's own pixels; None where nothing was found.
    """

    segments: list[Segment]
    foreground: Mask
    subject: Mask | None


def find_layouts(pictures: Sequence[Picture], segmenter: Segmenter, clip: ClipEncoder, class_text: str) -> list[Layout]:
    """Find the subject of each picture.

    Among the regions that the segmenter names an object (all regions, if it gives no such name) it is the one whose
    cut-out CLIP finds closest to the class text. Foreground are all named objects, or else the subject.
    """
    named = OBJECT in segmenter.names
    found = segmenter.segments(pictures)
    candidates: list[list[Mask]] = []
    for segments in found:
        masks = [segment.mask for segment in segments if not named or segment.name == OBJECT]
        candidates.append([mask for mask in masks if _SMALLEST_SUBJECT <= mask.mean() <= _LARGEST_SUBJECT])
    crops = [
        cut_out(picture, mask)
        for picture, masks in zip(pictures, candidates, strict=True)
        for mask in (masks if len(masks) > 1 else [])
    ]
    scores = iter((clip.encode_images(crops) @ clip.encode_texts([class_text])[0]).tolist() if crops else [])
    layouts = []
    for picture, segments, masks in zip(pictures, found, candidates, strict=True):
        subject = None
        if len(masks) == 1:
            subject = masks[0]
        elif masks:
            subject = masks[int(np.argmax([next(scores) for _ in masks]))]
        foreground = np.zeros(picture.shape[:2], dtype=np.bool_)
        for segment in segments:
            if named and segment.name == OBJECT:
                foreground |= segment.mask
        if not named and subject is not None:
            foreground = subject
        layouts.append(Layout(segments, foreground, subject))
    return layouts


def cut_out(picture: Picture, mask: Mask, margin: float = 0.1) -> Picture:
    """The square around a mask, with a margin, all that is outside the mask grey."""
    top, left, bottom, right = box_of(mask)
    side = round(max(bottom - top, right - left) * (1 + 2 * margin))
    result = np.full((side, side, 3), GREY, dtype=np.uint8)
    row, column = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    inside = result[row : row + bottom - top, column : column + right - left]
    inner = mask[top:bottom, left:right]
    inside[inner] = picture[top:bottom, left:right][inner]
    return result


def subjects(pictures: Sequence[Picture], layouts: Sequence[Layout]) -> list[Picture]:
    """The cut-out subject of each picture; the whole picture where none was found, so that a miss is not left out."""
    return [
        picture if layout.subject is None else cut_out(picture, layout.subject)
        for picture, layout in zip(pictures, layouts, strict=True)
    ]
