"""Both stages train on a machine that has neither prefect nor mlflow, dvc or great-expectations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import load_concept
from components.learning.extractor import train_extractor
from components.learning.pure import train_pure
from components.learning.tracker import NullTracker
from components.settings import load_profile

folder = Path("concept")
folder.mkdir()
generator = np.random.default_rng(0)
texts = ["a [V] star on the left, brick background", "a [V] star on the right, snow background"]
with (folder / "metadata.jsonl").open("w") as lines:
    for number, text in enumerate(texts):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
        lines.write(json.dumps({"file_name": f"{number}.png", "text": text}) + "\\n")
description = "name: concept\\nkind: instance\\nclass_word: star\\nlicense: CC0-1.0\\nsource: a test\\n"
(folder / "concept.yaml").write_text(description)
concept = load_concept(folder)

overrides = [f"base.path={sys.argv[1]}", "learning.extractor.steps=2", "learning.pure.steps=2"]
profile = load_profile("tiny", [*overrides, "learning.batch_size=2"])
backbone = SD3Backbone.load(profile.base)
extractor = train_extractor(backbone, concept, profile, Path("extractor"), NullTracker())
pure = train_pure(backbone, concept, profile, extractor, Path("pure"), NullTracker())
backbone.load_adapter(pure, "concept")
history = [json.loads(line) for line in Path("pure/history.jsonl").read_text().splitlines()]
print(json.dumps({"steps": [row["step"] for row in history], "keys": sorted(history[0])}))
"""


@pytest.mark.slow
def test_both_stages_train_without_the_tools_around_them(
    without_tools: Callable[..., str], micro_family: Path, project: Path
) -> None:
    result = json.loads(without_tools(PROGRAM, str(micro_family)).splitlines()[-1])
    assert result["steps"] == [1, 2]
    assert {"loss/cc", "loss/purecc", "loss/total", "lambda_star/mean", "guidance/cosine"} <= set(result["keys"])
