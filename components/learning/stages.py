"""What both stages and all methods share: their inputs, previews, and how an adapter is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.backbones.economies import economies
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept, fingerprint
from components.files import atomic_file, atomic_folder, digest_of, verify_manifest, write_json
from components.learning.cache import EncodedConcept
from components.learning.guidance_bank import GuidanceBank
from components.learning.loop import train
from components.learning.task import Stage, Task
from components.learning.tracker import Tracker
from components.learning.training import Loss, ParameterGroup, Training
from components.settings import BaseSettings, Profile

METHOD_VERSION = "1"
"""Raised when a change of the code changes what the same inputs train."""

_PREVIEWS = 4


@dataclass(frozen=True)
class Recipe:
    """What a method makes of a task.

    Attributes:
        groups: exactly what trains.
        kept_blocks: the adapter keeps the LoRA of these blocks; None: of all.
        bank: the points that steps draw from; None: every step draws its own.
    """

    groups: Sequence[ParameterGroup]
    loss: Loss
    kept_blocks: Sequence[int] | None = None
    bank: GuidanceBank | None = None


Prepare = Callable[[Task], Recipe]
"""Adds the adapter that trains, named as the stage, to the backbone, and says what of it trains by which loss."""


def train_stage(
    task: Task,
    prepare: Prepare,
    work_dir: Path,
    tracker: Tracker,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Train, or go on with a training that was interrupted; the adapter folder.

    Raises:
        TrainingDiverged, InvalidInput: see `components.learning.loop.train`.
    """
    backbone, settings = task.backbone, task.settings
    parents = [verify_manifest(folder) for folder in (task.extractor, *task.earlier) if folder is not None]
    key = training_key(backbone, task.concept, task.profile, task.stage, parents=tuple(parents))
    try:
        recipe = prepare(task)
        with economies(
            backbone.adapted,
            checkpointing=task.learning.gradient_checkpointing,
            compile_=task.learning.compile,
            int8=task.learning.quantize_base == "int8",
        ):
            train(
                Training(
                    stage=task.stage,
                    key=key,
                    steps=settings.steps,
                    warmup_steps=settings.warmup_steps,
                    seed=task.profile.seed,
                    shift=backbone.timestep_shift,
                    device=backbone.device,
                    settings=task.learning,
                    groups=recipe.groups,
                    encoded=task.encoded,
                    loss=recipe.loss,
                    save=finisher(task, recipe.kept_blocks, provenance),
                    preview=previewer(backbone, task.stage, task.encoded, task.profile),
                    bank=recipe.bank,
                ),
                work_dir,
                tracker,
            )
    finally:
        task.remove_adapters()
    return work_dir / "adapter"


def training_key(
    backbone: SD3Backbone,
    concept: Concept,
    profile: Profile,
    stage: Stage,
    *,
    parents: tuple[str, ...] = (),
) -> str:
    """Digest of everything the result of a stage depends on; what is only shown, and the other stage, is not."""
    return digest_of(
        {
            "method": METHOD_VERSION,
            "stage": stage,
            "learning": profile.learning.of_stage(stage),
            "base": profile.base.model_dump(mode="json", exclude=set(BaseSettings.WHERE)),
            "base_fingerprint": backbone.fingerprint,
            "concept": fingerprint(concept.folder),
            "seed": profile.seed,
            "parents": list(parents),
        }
    )


def finisher(
    task: Task, kept_blocks: Sequence[int] | None, provenance: Mapping[str, Any] | None
) -> Callable[[Path], None]:
    """Writes the adapter folder of the design, under a manifest, in one atomic step."""

    def save(folder: Path) -> None:
        with atomic_folder(folder) as partial:
            task.backbone.save_adapter(task.stage, partial, blocks=kept_blocks)
            shutil.copyfile(task.concept.folder / "concept.yaml", partial / "concept.yaml")
            if provenance is not None:
                write_json(partial / "provenance.json", json.loads(json.dumps(provenance)))

    return save


def previewer(
    backbone: SD3Backbone, adapter: str, encoded: EncodedConcept, profile: Profile
) -> Callable[[Path], None] | None:
    """Draws the concept's own texts with the current adapter and fixed seeds, side by side, into a PNG."""
    if not profile.learning.preview_every:
        return None
    texts = list(dict.fromkeys(reference.texts.complete for reference in encoded.concept.references))[:_PREVIEWS]
    text, null, sampling = encoded.select(texts), encoded.select([""]), profile.evaluation.sampling

    def preview(file: Path) -> None:
        from PIL import Image

        images_BCHW = backbone.sample(
            text,
            null,
            seeds=range(len(texts)),
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            adapter=adapter,
        )
        backbone.free("vae")
        strip_HWC = torch.cat(list(images_BCHW), dim=-1).permute(1, 2, 0).add(1).mul(127.5).round().to(torch.uint8)
        with atomic_file(file) as partial:
            Image.fromarray(strip_HWC.cpu().numpy()).save(partial, format="PNG")

    return preview
