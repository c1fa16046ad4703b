"""Texts and images of a concept, encoded once.

Latents are kept under the digest of the image's bytes, never under a step or a position: a shuffled loader cannot pair
an image with another's latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.concepts.images import load_image
from components.files import sha256_file
from components.learning.encodings import Encodings


def _latent(backbone: SD3Backbone, file: Path) -> Tensor:
    return backbone.encode_image(load_image(file, backbone.settings.resolution)[None])[0]


@dataclass(frozen=True)
class ConditionedBatch:
    """Latents of some references with their texts (METHOD section 1), and the null text for each.

    Attributes:
        random: the step's generator, for what a method draws besides; it lies on the CPU.
        fixed: velocities that a guidance bank holds for these points, in the order of its loss; None: no bank.
    """

    x_0_BCHW: Tensor
    complete: TextEncoding
    base: TextEncoding
    target: TextEncoding
    class_text: TextEncoding
    null: TextEncoding
    random: torch.Generator | None = None
    fixed: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class EncodedConcept:
    """What training needs of a concept.

    Attributes:
        latents: digest of an image -> its latent (C, H, W).
        digests: digest of each reference.
        texts: each different text, encoded.
        positions: text -> its row in `texts`.
        concept: the references themselves.
    """

    latents: dict[str, Tensor]
    digests: tuple[str, ...]
    texts: TextEncoding
    positions: dict[str, int]
    concept: Concept

    @staticmethod
    def encode(
        backbone: SD3Backbone, concept: Concept, *, more: Sequence[str] = (), folder: Path | None = None
    ) -> EncodedConcept:
        """Encode all texts and images, then free the encoders and the autoencoder.

        Args:
            more: further texts, which belong to no reference.
            folder: keeps encodings for the next time (see `components.learning.encodings`); None: nothing is kept.
        """
        kept = Encodings(backbone, folder)
        digests, latents = [], {}
        for reference in concept.references:
            digest = sha256_file(reference.path)
            digests.append(digest)
            if digest not in latents:
                latents[digest] = kept.latent(digest, partial(_latent, backbone, reference.path))
        backbone.free("vae")
        texts = [""]
        for reference in concept.references:
            derived = reference.texts
            texts += [derived.complete, derived.base, derived.target, derived.class_text]
        unique = list(dict.fromkeys([*texts, *more]))
        encoded = kept.texts(unique, lambda: backbone.encode_text(unique))
        backbone.free("text")
        positions = {text: index for index, text in enumerate(unique)}
        return EncodedConcept(latents, tuple(digests), encoded, positions, concept)

    def select(self, texts: Sequence[str]) -> TextEncoding:
        """The encodings of these texts, in order."""
        return self.texts.select([self.positions[text] for text in texts])

    def batch(self, references: Sequence[int]) -> ConditionedBatch:
        """The references with these indices."""
        derived = [self.concept.references[index].texts for index in references]
        return ConditionedBatch(
            x_0_BCHW=torch.stack([self.latents[self.digests[index]] for index in references]),
            complete=self.select([texts.complete for texts in derived]),
            base=self.select([texts.base for texts in derived]),
            target=self.select([texts.target for texts in derived]),
            class_text=self.select([texts.class_text for texts in derived]),
            null=self.select([""] * len(references)),
        )
