"""The oracle's training: every attribute of a picture, and where its objects are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from components.world.oracle import Oracle, attribute_labels
from components.world.pretraining.judges.judge import Judge, classification, judge_scene, targets, worn
from components.world.render import Render, render


class OracleObjective(Judge):
    """Cross-entropy on every attribute that has an answer, and the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle(attribute_labels())

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        scenes = [judge_scene(rng) for _ in range(size)]
        drawn: Render = render(scenes)
        return {
            "images": worn(drawn.images_BCHW, rng),
            "mask": drawn.masks_BNHW.sum(1),
            "targets": targets(scenes, self.oracle.labels),
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits, mask = self.oracle(batch["images"])
        loss, accuracies = classification(logits, batch["targets"])
        mask_loss = nn.functional.binary_cross_entropy_with_logits(mask.float(), batch["mask"])
        return {"loss": loss + 2 * mask_loss, "mask": mask_loss.detach(), **accuracies}

    def save(self, folder: Path) -> None:
        """In the layout that `Oracle.load` reads."""
        self.oracle.save_pretrained(folder)
        # the hub's template with nothing filled in; the base's card describes the oracle
        (folder / "README.md").unlink(missing_ok=True)
