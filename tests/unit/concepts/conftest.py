"""A concept folder that is right in everything; each test breaks one thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# Times say nothing on a machine that is busy with other work
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

MakeConcept = Callable[..., Path]


def picture(seed: int, side: int = 64) -> Image.Image:
    """A sharp image unlike that of any other seed: a coarse random mosaic, borders of its own colour."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    cells[[0, -1]] = cells[:, [0, -1]] = rng.integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(cells.repeat(side // 8, axis=0).repeat(side // 8, axis=1))


@pytest.fixture
def make_concept(tmp_path: Path) -> MakeConcept:
    def make(
        name: str = "my_star",
        *,
        texts: list[str] | None = None,
        count: int = 3,
        kind: str = "instance",
        class_word: str = "star",
    ) -> Path:
        folder = tmp_path / "concepts" / name
        folder.mkdir(parents=True)
        default = "a star, in [V] style" if kind == "style" else "a [V] star on the left"
        texts = [default] * count if texts is None else texts
        fields = {"name": name, "kind": kind, "class_word": class_word, "license": "CC0-1.0", "source": "a test"}
        (folder / "concept.yaml").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
        lines = []
        for number, text in enumerate(texts, 1):
            picture(number).save(folder / f"{number:02d}.png")
            lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": text}))
        (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    return make
