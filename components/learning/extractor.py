"""Stage 1: the representation extractor theta1 (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.learning.cache import ConditionedBatch, EncodedConcept
from components.learning.flow_matching import FlowSample
from components.learning.loop import Loss, StepLoss, Training, train
from components.learning.objective import squared_error
from components.learning.randomness import derive_seed
from components.learning.stages import finisher, groups, initial_embeddings, previewer, training_key
from components.learning.tracker import Tracker
from components.settings import Profile

STAGE = "extractor"


def flow_matching_loss(backbone: SD3Backbone, adapter: str) -> Loss:
    """L_CC (3): plain conditional flow matching on the complete text."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        v_BCHW = backbone.velocity(flow.x_t_BCHW, flow.t_B, batch.complete, adapter)
        total = squared_error(v_BCHW, flow.target_BCHW)
        return StepLoss(total, {"loss/cc": total.detach(), "loss/total": total.detach()})

    return loss


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
    settings = profile.learning.extractor
    key = training_key(backbone, concept, profile, STAGE)
    encoded = EncodedConcept.encode(backbone, concept)
    kinds = settings.trains.split("+")
    backbone.create_adapter(
        STAGE,
        concept=concept.name,
        lora=profile.learning.lora if "lora" in kinds else None,
        embeddings_NRD=initial_embeddings(backbone, encoded, profile.seed) if "embeddings" in kinds else None,
        seed=derive_seed(profile.seed, STAGE, "lora"),
    )
    try:
        backbone.use_gradient_checkpointing(profile.learning.gradient_checkpointing)
        train(
            Training(
                stage=STAGE,
                key=key,
                steps=settings.steps,
                warmup_steps=settings.warmup_steps,
                seed=profile.seed,
                shift=backbone.timestep_shift,
                device=backbone.device,
                settings=profile.learning,
                groups=groups(backbone, STAGE, settings, settings.trains),
                encoded=encoded,
                loss=flow_matching_loss(backbone, STAGE),
                save=finisher(backbone, STAGE, concept, provenance),
                preview=previewer(backbone, STAGE, encoded, profile),
            ),
            work_dir,
            tracker,
        )
    finally:
        backbone.remove_adapter(STAGE)
    return work_dir / "adapter"
