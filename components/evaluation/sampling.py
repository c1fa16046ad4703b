"""Same-seed pairs: the customized and the original model from the same noise.

Images that depend on the original model alone are kept by digest and shared by every evaluation on that base: they
are drawn once. A kept image is used only if its bytes still match the digest written beside it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.backbones.interface import Backbone
from components.evaluation.pictures import Picture, read_png, to_pictures, write_png
from components.evaluation.prompts import Prompt
from components.files import digest_of, sha256_file
from components.settings import SamplingSettings

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called as (what, done, of) after each batch."""


@dataclass(frozen=True)
class Request:
    """One image to draw: a prompt and the seed of its noise."""

    prompt: str
    seed: int


def seed_of(profile_seed: int, prompt: Prompt, repetition: int, *, floor: bool = False) -> int:
    """The seed of a prompt's image; it depends on the base text only, so that other prompts may come and go."""
    text = f"{profile_seed}|{repetition}|{'floor' if floor else 'pair'}|{prompt.base}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


class ImageStore:
    """Images by digest of everything that determines them; verified on every read."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._folder = folder
        self._identity = dict(identity)

    def _file(self, request: Request) -> Path:
        key = digest_of({**self._identity, "prompt": request.prompt, "seed": request.seed})
        return self._folder / key[:2] / f"{key}.png"

    def get(self, request: Request) -> Picture | None:
        """The kept picture, or None where there is none or its bytes are not what was written."""
        file = self._file(request)
        stated = file.with_suffix(".sha256")
        if not file.is_file() or not stated.is_file():
            return None
        if stated.read_text(encoding="utf-8", errors="replace").strip() != sha256_file(file):
            _log.warning("%s does not match its digest and is drawn again", file)
            return None
        return read_png(file)

    def put(self, request: Request, picture: Picture) -> None:
        file = self._file(request)
        file.with_suffix(".sha256").unlink(missing_ok=True)
        write_png(file, picture)
        # Not forced to the disk either: a digest that a power cut tears does not match, and the image is drawn again.
        file.with_suffix(".sha256").write_text(sha256_file(file) + "\n", encoding="utf-8")


def draw(
    backbone: Backbone,
    adapter: str | None,
    requests: Sequence[Request],
    sampling: SamplingSettings,
    *,
    store: ImageStore | None = None,
    what: str = "images",
    progress: Progress | None = None,
) -> list[Picture]:
    """One picture per request, in batches of fixed composition.

    A batch of which any image is missing from the store is drawn whole: the rounding of an image can depend on the
    batch it was drawn in, and an interrupted run must give the bits of an unbroken one.
    """
    pictures: list[Picture] = []
    for start in range(0, len(requests), sampling.batch_size):
        batch = requests[start : start + sampling.batch_size]
        kept = [store.get(request) for request in batch] if store is not None else [None]
        found = [picture for picture in kept if picture is not None]
        if len(found) == len(batch):
            pictures += found
        else:
            drawn = _draw_batch(backbone, adapter, batch, sampling)
            if store is not None:
                for request, picture in zip(batch, drawn, strict=True):
                    store.put(request, picture)
            pictures += drawn
        _log.info("%s: %d of %d", what, len(pictures), len(requests))
        if progress is not None:
            progress(what, len(pictures), len(requests))
    return pictures


def _draw_batch(
    backbone: Backbone, adapter: str | None, batch: Sequence[Request], sampling: SamplingSettings
) -> list[Picture]:
    text = backbone.encode_text([request.prompt for request in batch])
    negative = backbone.encode_text([""]).select([0] * len(batch))
    images_BCHW = backbone.sample(
        text,
        negative,
        seeds=[request.seed for request in batch],
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        adapter=adapter,
    )
    return to_pictures(images_BCHW)


@dataclass(frozen=True)
class Sample:
    """What one prompt and repetition gave.

    Attributes:
        custom: the customized model on the complete text.
        original: the original model on the base text, from the same noise.
        floor: the original model on the base text, from other noise.
    """

    prompt: Prompt
    repetition: int
    seed: int
    custom: Picture
    original: Picture
    floor: Picture


def draw_samples(
    backbone: Backbone,
    adapter: str,
    prompts: Sequence[Prompt],
    *,
    repetitions: int,
    profile_seed: int,
    sampling: SamplingSettings,
    cache_dir: Path,
    identity: Mapping[str, Any],
    adapter_digest: str | None = None,
    adapter_scale: float = 1.0,
    progress: Progress | None = None,
) -> list[Sample]:
    """Draw every prompt `repetitions` times with both models, and the original once more as the floor.

    Args:
        identity: what, beside prompt, seed and sampling, determines the original's images (the base's fingerprint,
            its precision, the resolution).
        adapter_digest: digest of the adapter's folder; with it an interrupted evaluation resumes.
        adapter_scale: the scale at which the adapter acts, part of what its pictures are kept by.
    """
    known = {
        **identity,
        "base": backbone.fingerprint,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
    }
    original_store = ImageStore(cache_dir / "original", known)
    custom_store = None
    if adapter_digest is not None:
        acting = {**known, "adapter": adapter_digest, "scale": adapter_scale}
        custom_store = ImageStore(cache_dir / "custom" / adapter_digest, acting)
    samples: dict[tuple[int, int], Sample] = {}
    for repetition in range(repetitions):
        # Prompts with and without the concept are drawn apart: the latter are the same for concepts of other classes.
        for has_concept in (True, False):
            chosen = [prompt for prompt in prompts if prompt.has_concept is has_concept]
            what = "with the concept" if has_concept else "without the concept"
            seeds = [seed_of(profile_seed, prompt, repetition) for prompt in chosen]
            floor_seeds = [seed_of(profile_seed, prompt, repetition, floor=True) for prompt in chosen]

            def requests(texts: Sequence[str], seeds: Sequence[int]) -> list[Request]:
                return [Request(text, seed) for text, seed in zip(texts, seeds, strict=True)]

            complete, base = [prompt.complete for prompt in chosen], [prompt.base for prompt in chosen]
            custom = draw(
                backbone,
                adapter,
                requests(complete, seeds),
                sampling,
                store=custom_store,
                what=f"customized model, {what}",
                progress=progress,
            )
            original, floor = (
                draw(
                    backbone,
                    None,
                    requests(base, which),
                    sampling,
                    store=original_store,
                    what=f"original model, {what}{suffix}",
                    progress=progress,
                )
                for which, suffix in ((seeds, ""), (floor_seeds, ", another seed"))
            )
            for prompt, seed, *pictures in zip(chosen, seeds, custom, original, floor, strict=True):
                samples[prompt.index, repetition] = Sample(prompt, repetition, seed, *pictures)
    return [samples[key] for key in sorted(samples)]
