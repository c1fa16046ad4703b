"""Leakage: how much of the references' background appears in pictures whose prompt asks for another one.

Measured in three ways, each where it can be: an oracle says which background it sees (`preservation.leakage`), a
segmenter that names what it sees says how much of the picture shows the references' background, and, without any names,
features of the pictures with their subject painted over are compared with those of the references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.evaluation.encoders import ImageEncoder
from components.evaluation.fidelity import GREY, OBJECT, Layout, cosine_to_references
from components.evaluation.pictures import Picture
from components.evaluation.prompts import Prompt
from components.evaluation.segmenters import Mask

BACKGROUND = "background"
LEAKAGE = ("preservation/background_leakage", "preservation/background_leakage_area",
           "preservation/background_similarity")  # fmt: skip
"""Metric keys of the three measures; `<key>_original` is the same of the original model's pictures."""


def asks_for_another(prompts: Sequence[Prompt], background: str | None) -> NDArray[np.bool_]:
    """(N,): whether each prompt asks for the concept before a background other than the references' `background`.

    A prompt that expects no background (no oracle judges it) counts only where the references' has no name.
    """
    return np.array(
        [
            prompt.has_concept and (background is None or prompt.expect.get(BACKGROUND, background) != background)
            for prompt in prompts
        ]
    )


def background_areas(layout: Layout) -> Counter[str]:
    """Name -> pixels of what a segmenter that names things sees behind the foreground; empty if there is nothing."""
    areas: Counter[str] = Counter()
    for segment in layout.segments:
        if segment.name is not None and segment.name != OBJECT:
            areas[segment.name] += int((segment.mask & ~layout.foreground).sum())
    return +areas  # without names of no pixel


def common_background(layouts: Sequence[Layout]) -> str | None:
    """The name of what covers more than half of the background of the references, all taken together; None if nothing
    does."""
    total: Counter[str] = Counter()
    for layout in layouts:
        total += background_areas(layout)
    if not total:
        return None
    name, area = total.most_common(1)[0]
    return name if 2 * area > total.total() else None


def background_share(layouts: Sequence[Layout], background: str) -> NDArray[np.float64]:
    """(N,): the share of each picture's background that shows `background`; NaN where no background is seen."""
    shares = []
    for layout in layouts:
        areas = background_areas(layout)
        shares.append(areas[background] / areas.total() if areas else np.nan)
    return np.array(shares, dtype=np.float64)


def background_similarity(
    encoder: ImageEncoder,
    pictures: Sequence[Picture],
    layouts: Sequence[Layout],
    references: Sequence[Picture],
    reference_layouts: Sequence[Layout],
) -> NDArray[np.float64]:
    """(N,): mean cosine of each picture and the references, the foreground of all painted grey.

    It is read against the same value of the original model's pictures, which know nothing of the references.
    """
    shown = encoder.encode_images(
        [paint_over(picture, layout.foreground) for picture, layout in zip(pictures, layouts, strict=True)]
    )
    known = encoder.encode_images(
        [paint_over(picture, layout.foreground) for picture, layout in zip(references, reference_layouts, strict=True)]
    )
    return cosine_to_references(shown, known)


def paint_over(picture: Picture, mask: Mask) -> Picture:
    """The picture with the masked pixels grey."""
    result = picture.copy()
    result[mask] = GREY
    return result


def leakage_table(cells: pd.DataFrame) -> pd.DataFrame:
    """How much of the references' background each method lets in, beyond what the original model draws anyway.

    Args:
        cells: one cell per method, concept and seed.

    Returns:
        One row per method: for each measure of leakage that was taken its mean, and `<measure>/excess`, the mean
        difference to the original model's pictures of the same prompts.
    """
    rows = []
    for method, part in cells.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method, "concepts": part["concept"].nunique()}
        for measure in LEAKAGE:
            if measure in part and part[measure].notna().any():
                row[measure] = float(part[measure].mean())
                row[f"{measure}/excess"] = float((part[measure] - part[f"{measure}_original"]).mean())
        rows.append(row)
    return pd.DataFrame(rows)
