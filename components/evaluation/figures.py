"""The pictures of the report: embedded, and no more of them than a page can carry."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from components.evaluation.result import EvaluationResult

_SMALL = 256
"""Pictures up to this side stand in the report as they are; larger ones as JPEG of this side."""
BUDGET = 8_000_000
_PAIRS_PER_CATEGORY = 8
_FACTS = (
    ("Seg-Cons", ("preservation/seg_cons", "preservation/prior_seg_cons"), "{:.1f}"),
    ("DINO", ("fidelity/dino",), "{:.3f}"),
    ("CLIP-T difference", ("preservation/clip_t_delta", "preservation/prior_clip_t_delta"), "{:+.2f}"),
    ("pixel distance", ("preservation/prior_distance",), "{:.4f}"),
)


class Budget:
    """Bytes of pictures that the report may still take."""

    def __init__(self, total: int):
        self.left = total


def embedded(file: Path, budget: Budget) -> dict[str, str]:
    """A picture as a data URI, and whether it is small (then it is shown with sharp pixels)."""
    with Image.open(file) as image:
        small = max(image.size) <= _SMALL
        if small:
            content, kind = file.read_bytes(), "png"
        else:
            shrunk = image.convert("RGB")
            shrunk.thumbnail((_SMALL * 2, _SMALL * 2), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            shrunk.save(buffer, format="JPEG", quality=82)
            content, kind = buffer.getvalue(), "jpeg"
    budget.left -= len(content) * 4 // 3
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"data": data, "size": "small" if small else "large"}


def pairs_of(result: EvaluationResult, budget: Budget) -> tuple[list[tuple[str, list[dict[str, Any]]]], int]:
    """The pairs that the report shows, by category, as many as the budget allows; first repetition first."""
    if result.folder is None:
        return [], 0
    by_category: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result.rows, key=lambda row: int(row["repetition"])):
        by_category.setdefault(row["category"], []).append(row)
    chosen: dict[str, list[dict[str, Any]]] = {category: [] for category in by_category}
    # One of each category in turn, so that a small budget still shows every category.
    for place in range(_PAIRS_PER_CATEGORY):
        for category, rows in by_category.items():
            if place < len(rows) and budget.left > 0:
                chosen[category].append(_pair(rows[place], result.folder, budget))
    shown = sum(len(pairs) for pairs in chosen.values())
    return [(category, pairs) for category, pairs in chosen.items() if pairs], shown


def _pair(row: Mapping[str, Any], folder: Path, budget: Budget) -> dict[str, Any]:
    images = {which: embedded(folder / row["images"][which], budget) for which in ("original", "custom")}
    masks = {which: embedded(folder / row["masks"][which], budget)["data"] for which in ("original", "custom")}
    facts = []
    for name, keys, form in _FACTS:
        value = next((row["values"][key] for key in keys if key in row["values"]), None)
        if value is not None:
            facts.append((name, form.format(value).replace("-", "\N{MINUS SIGN}")))
    # The identifier is set off by the page, after the text is escaped.
    prompt = Markup(str(escape(row["complete"])).replace("[V]", "<b>[V]</b>"))
    return {
        "prompt": prompt,
        "complete": row["complete"],
        "base": row["base"],
        "original": images["original"]["data"],
        "custom": images["custom"]["data"],
        "size": images["custom"]["size"],
        "original_masks": masks["original"],
        "custom_masks": masks["custom"],
        "facts": [*facts, ("seed", row["seed"])],
    }
