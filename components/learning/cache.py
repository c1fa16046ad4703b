"""Texts and images of a concept, encoded once.

Latents are kept under the digest of the image's bytes, never under a step or a position: a shuffled loader cannot pair
an image with another's latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.concepts.images import load_image
from components.files import sha256_file


@dataclass(frozen=True)
class ConditionedBatch:
    """Latents of some references with their texts (METHOD section 1), and the null text for each.

    Attributes:
        random: the step's generator, for what a method draws besides; it lies on the CPU.
    """

    x_0_BCHW: Tensor
    complete: TextEncoding
    base: TextEncoding
    target: TextEncoding
    class_text: TextEncoding
    null: TextEncoding
    random: torch.Generator | None = None


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
    def encode(backbone: SD3Backbone, concept: Concept, *, more: Sequence[str] = ()) -> EncodedConcept:
        """Encode all texts and images, then free the encoders and the autoencoder.

        Args:
            more: further texts, which belong to no reference.
        """
        digests, latents = [], {}
        for reference in concept.references:
            digest = sha256_file(reference.path)
            digests.append(digest)
            if digest not in latents:
                image_CHW = load_image(reference.path, backbone.settings.resolution)
                latents[digest] = backbone.encode_image(image_CHW[None])[0]
        backbone.free("vae")
        texts = [""]
        for reference in concept.references:
            derived = reference.texts
            texts += [derived.complete, derived.base, derived.target, derived.class_text]
        unique = list(dict.fromkeys([*texts, *more]))
        encoded = backbone.encode_text(unique)
        backbone.free("text")
        positions = {text: index for index, text in enumerate(unique)}
        return EncodedConcept(latents, tuple(digests), encoded, positions, concept)

    def part(self, start: int, stop: int) -> EncodedConcept:
        """The references from `start` to before `stop`, with all texts."""
        concept = replace(self.concept, references=self.concept.references[start:stop])
        return replace(self, digests=self.digests[start:stop], concept=concept)

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
