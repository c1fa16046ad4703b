"""Stage 2: pure learning of theta2 under the frozen extractor's guidance (METHOD section 4).

Also the plain LoRA baseline: LoRA of the same rank on the same modules, trained by L_CC alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.files import verify_manifest
from components.learning import extractor as stage1
from components.learning.cache import ConditionedBatch, EncodedConcept
from components.learning.flow_matching import FlowSample
from components.learning.loop import Loss, StepLoss, Training, train
from components.learning.objective import guidance_metrics, guide, squared_error
from components.learning.randomness import derive_seed
from components.learning.stages import finisher, groups, initial_embeddings, previewer, training_key
from components.learning.tracker import Tracker
from components.settings import LearningSettings, Profile

STAGE = "pure-learning"


def pure_learning_loss(backbone: SD3Backbone, adapter: str, extractor: str, settings: LearningSettings) -> Loss:
    """L_PCC = L_CC + eta L_PureCC (15).

    `original` says where v_orig (9) comes from: theta2 with gradient (`trainable`, as released), theta2 without
    (`detached`), or the untouched base (`frozen`). R_cb (10) is taken against the same v_orig, so that the closed form
    of lambda* minimises L_PureCC in each case. `guidance` says what R_tar (8) is taken against.
    """

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        x_BCHW, t_B = flow.x_t_BCHW, flow.t_B
        contrast = batch.null if settings.guidance == "null" else batch.class_text
        fixed: list[tuple[TextEncoding, str | None]] = [(batch.target, extractor), (contrast, extractor)]
        if settings.original != "trainable":
            fixed.append((batch.base, None if settings.original == "frozen" else adapter))
        with torch.no_grad():
            v_target_BCHW, v_contrast_BCHW, *v_orig = backbone.velocities(x_BCHW, t_B, fixed)
        learned: list[tuple[TextEncoding, str | None]] = [(batch.complete, adapter)]
        if settings.original == "trainable":
            learned.append((batch.base, adapter))
        v_complete_BCHW, *v_trained = backbone.velocities(x_BCHW, t_B, learned)
        (v_orig_BCHW,) = (*v_orig, *v_trained)

        step = guide(v_complete_BCHW, v_orig_BCHW, v_target_BCHW - v_contrast_BCHW)
        cc = squared_error(v_complete_BCHW, flow.target_BCHW)
        purecc = squared_error(v_complete_BCHW, step.target_BCHW)
        total = cc + settings.eta * purecc
        metrics = {"loss/cc": cc.detach(), "loss/purecc": purecc.detach(), "loss/total": total.detach()}
        return StepLoss(total, metrics | guidance_metrics(step, v_complete_BCHW, v_orig_BCHW))

    return loss


def train_pure(
    backbone: SD3Backbone,
    concept: Concept,
    profile: Profile,
    extractor: Path | None,
    work_dir: Path,
    tracker: Tracker,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Train theta2, or go on with a training that was interrupted, and return its adapter folder.

    Under `method: purecc` theta2 has LoRA and layer-wise embeddings, which start from theta1's (at what the base makes
    of the placeholder word if theta1 has none). Under `method: lora` there is no extractor, the adapter is LoRA alone,
    the placeholder stays the word that it is, and the loss is L_CC alone (DreamBooth-LoRA).

    Args:
        extractor: the adapter folder of stage 1; None under `method: lora`.
        work_dir: history, checkpoints, snapshots, previews and the adapter go here.
        provenance: content of the adapter's provenance.json; None: the caller adds it.

    Raises:
        InvalidInput: an extractor is missing or given where there is none to have; it is for another base or concept.
        IntegrityError: the extractor's folder does not match its manifest.
        TrainingDiverged: see `components.learning.loop.train`.
    """
    learning, settings = profile.learning, profile.learning.pure
    if (extractor is None) != (learning.method == "lora"):
        raise InvalidInput(
            "pure learning needs the extractor of stage 1" if extractor is None else "plain LoRA has no extractor",
            field="learning.method",
        )
    parents = () if extractor is None else (verify_manifest(extractor),)
    key = training_key(backbone, concept, profile, STAGE, parents=parents)
    encoded = EncodedConcept.encode(backbone, concept)
    loaded = []
    try:
        initial = None
        if extractor is not None:
            backbone.load_adapter(extractor, stage1.STAGE)
            loaded.append(stage1.STAGE)
            if backbone.adapted[stage1.STAGE].concept != concept.name:
                raise InvalidInput(f"the extractor knows another concept than {concept.name!r}", file=extractor)
            theta1 = backbone.parameters(stage1.STAGE)
            initial = theta1["embeddings"]["Y_NRD"].detach() if "embeddings" in theta1 else None
        if initial is None and extractor is not None:
            initial = initial_embeddings(backbone, encoded, profile.seed)
        seed = derive_seed(profile.seed, STAGE, "lora")
        backbone.create_adapter(STAGE, concept=concept.name, lora=learning.lora, embeddings_NRD=initial, seed=seed)
        loaded.append(STAGE)
        backbone.use_gradient_checkpointing(learning.gradient_checkpointing)
        loss = (
            stage1.flow_matching_loss(backbone, STAGE)
            if extractor is None
            else pure_learning_loss(backbone, STAGE, stage1.STAGE, learning)
        )
        train(
            Training(
                stage=STAGE,
                key=key,
                steps=settings.steps,
                warmup_steps=settings.warmup_steps,
                seed=profile.seed,
                shift=backbone.timestep_shift,
                device=backbone.device,
                settings=learning,
                groups=groups(backbone, STAGE, settings, "lora" if extractor is None else "lora+embeddings"),
                encoded=encoded,
                loss=loss,
                save=finisher(backbone, STAGE, concept, provenance),
                preview=previewer(backbone, STAGE, encoded, profile),
            ),
            work_dir,
            tracker,
        )
    finally:
        for name in loaded:
            backbone.remove_adapter(name)
    return work_dir / "adapter"
