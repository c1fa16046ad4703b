"""Stage 1: the representation extractor theta1 (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.learning.losses import flow_matching_loss
from components.learning.stages import Recipe, train_stage
from components.learning.task import EXTRACTOR, Task
from components.learning.tracker import Tracker
from components.settings import Profile


def train_extractor(
    backbone: SD3Backbone,
    concept: Concept,
    profile: Profile,
    work_dir: Path,
    tracker: Tracker,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Train theta1, or go on with a training that was interrupted, and return its adapter folder.

    What trains is `learning.extractor.trains`: LoRA, layer-wise embeddings, or both; only that is part of theta1. The
    embeddings start at what the base makes of the placeholder word.

    Args:
        work_dir: history, checkpoints, snapshots, previews and the adapter go here.
        provenance: content of the adapter's provenance.json; None: the caller adds it.

    Raises:
        TrainingDiverged, InvalidInput: see `components.learning.loop.train`.
    """
    task = Task.of(backbone, concept, profile, EXTRACTOR)
    return train_stage(task, _prepare, work_dir, tracker, provenance=provenance)


def _prepare(task: Task) -> Recipe:
    kinds = task.learning.extractor.trains.split("+")
    task.add_adapter(
        lora=task.learning.lora if "lora" in kinds else None,
        embeddings_NRD=task.initial_embeddings() if "embeddings" in kinds else None,
    )
    return Recipe(task.groups(*kinds), flow_matching_loss(task.backbone, EXTRACTOR))
