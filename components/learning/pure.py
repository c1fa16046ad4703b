"""Stage 2, which is the only stage of every method but purecc: the training that makes the adapter people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.learning.methods import METHODS
from components.learning.methods.prior import prior_texts
from components.learning.stages import train_stage
from components.learning.task import PURE, Task
from components.learning.tracker import Tracker
from components.settings import Profile, project_root


def train_pure(
    backbone: SD3Backbone,
    concept: Concept,
    profile: Profile,
    extractor: Path | None,
    work_dir: Path,
    tracker: Tracker,
    *,
    earlier: Sequence[Path] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Train by `learning.method`, or go on with a training that was interrupted, and return the adapter folder.

    What trains and by which loss stands in the method's module under `components.learning.methods`.

    Args:
        extractor: the adapter folder of stage 1 where `learning.has_extractor`, else None.
        work_dir: history, checkpoints, snapshots, previews and the adapter go here.
        earlier: adapter folders of concepts learned before, beside those of `learning.earlier`; read by cifc alone.
        provenance: content of the adapter's provenance.json; None: the caller adds it.

    Raises:
        InvalidInput: an extractor is missing or given where there is none to have; it is for another base or concept.
        IntegrityError: the extractor's folder does not match its manifest.
        TrainingDiverged: see `components.learning.loop.train`.
    """
    learning = profile.learning
    if (extractor is None) == learning.has_extractor:
        raise InvalidInput(
            "pure learning needs the extractor of stage 1"
            if extractor is None
            else f"{learning.method} with stages: {learning.stages} has no extractor",
            field="learning.method",
        )
    unread = learning.unread()
    task = Task.of(
        backbone,
        concept,
        profile,
        PURE,
        more_texts=[] if "prior" in unread else prior_texts(concept),
        extractor=extractor,
        earlier=() if "earlier" in unread else (*earlier, *(project_root() / folder for folder in learning.earlier)),
    )
    return train_stage(task, METHODS[learning.method], work_dir, tracker, provenance=provenance)
