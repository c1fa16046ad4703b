"""What both stages share: their inputs, previews, and how an adapter is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept, fingerprint
from components.files import atomic_file, atomic_folder, digest_of, write_json
from components.learning.cache import EncodedConcept
from components.learning.loop import ParameterGroup
from components.learning.randomness import derive_seed
from components.settings import Profile, StageSettings

METHOD_VERSION = "1"
"""Raised when a change of the code changes what the same inputs train."""

_PREVIEWS = 4


def training_key(
    backbone: SD3Backbone, concept: Concept, profile: Profile, stage: str, *, parents: tuple[str, ...] = ()
) -> str:
    """Digest of everything the result of a stage depends on; what is only shown, and the other stage, is not."""
    learning = profile.learning.model_dump(mode="json", exclude={"checkpoint_every", "preview_every", "snapshot_steps"})
    for other in ("pure", "method", "original", "guidance", "eta") if stage == "extractor" else ("extractor",):
        del learning[other]
    return digest_of(
        {
            "method": METHOD_VERSION,
            "stage": stage,
            "learning": learning,
            "base": profile.base.model_dump(mode="json", exclude={"path", "revision", "device"}),
            "base_fingerprint": backbone.fingerprint,
            "concept": fingerprint(concept.folder),
            "seed": profile.seed,
            "parents": list(parents),
        }
    )


def initial_embeddings(backbone: SD3Backbone, encoded: EncodedConcept, seed: int) -> Tensor:
    """What the untouched base makes of the placeholder word in the concept's own texts, layer by layer: (N, R, D)."""
    batch = encoded.batch(range(len(encoded.digests)))
    return backbone.measure_context_rows(batch.complete, batch.x_0_BCHW, seed=derive_seed(seed, "embeddings") % 2**31)


def groups(backbone: SD3Backbone, adapter: str, settings: StageSettings, trains: str) -> list[ParameterGroup]:
    """The parameters of the adapter that train, by kind (`lora+embeddings`, `lora` or `embeddings`)."""
    rates = {"lora": settings.lora_learning_rate, "embeddings": settings.embedding_learning_rate}
    parameters = backbone.parameters(adapter)
    return [ParameterGroup(kind, parameters[kind], rates[kind]) for kind in rates if kind in trains.split("+")]


def finisher(
    backbone: SD3Backbone, adapter: str, concept: Concept, provenance: Mapping[str, Any] | None
) -> Callable[[Path], None]:
    """Writes the adapter folder of the design, under a manifest, in one atomic step."""

    def save(folder: Path) -> None:
        with atomic_folder(folder) as partial:
            backbone.save_adapter(adapter, partial)
            shutil.copyfile(concept.folder / "concept.yaml", partial / "concept.yaml")
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
