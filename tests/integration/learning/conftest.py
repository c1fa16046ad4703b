"""A concept of two random images and a profile whose base is the untrained micro family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept, load_concept
from components.settings import BaseSettings, Profile, load_profile


@pytest.fixture(scope="session")
def concept(tmp_path_factory: pytest.TempPathFactory) -> Concept:
    folder = tmp_path_factory.mktemp("concepts") / "striped_star"
    folder.mkdir()
    random = np.random.default_rng(0)
    texts = [
        "a [V] star on the left, brick background",
        "a [V] star on the right, brick background",
        "a small [V] star",
    ]
    lines = []
    for number, text in enumerate(texts):
        pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "concept.yaml").write_text(
        "name: striped_star\nkind: instance\nclass_word: star\nlicense: CC0-1.0\nsource: a test\n"
    )
    return load_concept(folder)


@pytest.fixture(scope="session")
def backbone(micro_family: Path) -> SD3Backbone:
    """Shared: every training removes its adapters."""
    return SD3Backbone.load(
        BaseSettings(path=str(micro_family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")
    )


MICRO: dict[str, Any] = {
    "learning": {
        "batch_size": 2,
        "dop_weight": None,
        "extractor": {"steps": 6, "lora_learning_rate": 0.01},
        "pure": {"steps": 6, "lora_learning_rate": 0.01, "weight_learning_rate": 0.01},
        "prior": {"images": 3, "sampling": {"steps": 2, "batch_size": 2}},
        "b_lora": {"content": [1], "style": [2]},
    },
    "evaluation": {"sampling": {"steps": 2}},
}


def _merge(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            _merge(content[key], value)
        else:
            content[key] = value


@pytest.fixture
def profile(micro_family: Path, project: Path) -> Callable[..., Profile]:
    """`profile("learning.eta=2", ...)`: the tiny profile on the micro family, few steps, and the paper's loss alone."""
    file = project / "profiles" / "tiny.yaml"
    content = yaml.safe_load(file.read_text())
    _merge(content, {"base": {"path": str(micro_family)}, **MICRO})
    file.write_text(yaml.safe_dump(content))
    return lambda *overrides: load_profile("tiny", overrides)
