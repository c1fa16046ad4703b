"""What the rest of the library knows of a flow model.

Shape suffixes: B batch, C channels, H W height and width (of the latent, or of the image where so named),
L context rows, D context width, P pooled width, R rows of the concept in the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextEncoding:
    """Prompts, encoded once.

    Attributes:
        context_BLD: the context stream that enters the transformer.
        pooled_BP: the pooled text vector.
        concept_rows: for each prompt, concept name -> the context rows that stand for that concept (CLIP rows first,
            then T5 rows, in order of appearance); empty where a prompt names none. The name of the `[V]` placeholder
            is `""`: it means "the concept of whichever adapter is active".
    """

    context_BLD: Tensor
    pooled_BP: Tensor
    concept_rows: tuple[dict[str, tuple[int, ...]], ...]

    def __len__(self) -> int:
        return self.context_BLD.shape[0]

    def select(self, indices: Sequence[int]) -> TextEncoding:
        """The rows `indices`, in that order (repeats allowed)."""
        where = torch.as_tensor(list(indices), device=self.context_BLD.device)
        return TextEncoding(
            self.context_BLD[where], self.pooled_BP[where], tuple(self.concept_rows[index] for index in indices)
        )

    @staticmethod
    def cat(parts: Sequence[TextEncoding]) -> TextEncoding:
        """The prompts of all parts, in order."""
        return TextEncoding(
            torch.cat([part.context_BLD for part in parts]),
            torch.cat([part.pooled_BP for part in parts]),
            tuple(rows for part in parts for rows in part.concept_rows),
        )


class Backbone(Protocol):
    """A pre-trained flow model with named adapters; `None` is the untouched base."""

    @property
    def fingerprint(self) -> str:
        """Digest of the base's weights and configuration."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent at the profile's resolution."""
        ...

    @property
    def device(self) -> torch.device: ...

    def encode_text(self, prompts: Sequence[str]) -> TextEncoding: ...

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> scaled latents (the mode of the posterior: no randomness)."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents -> pixels in [-1, 1]."""
        ...

    def velocity(self, x_BCHW: Tensor, t_B: Tensor, text: TextEncoding, adapter: str | None) -> Tensor:
        """Predicted velocity x_1 - x_0 at x_t; t in [0, 1]."""
        ...

    def sample(
        self,
        text: TextEncoding,
        negative: TextEncoding,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        adapter: str | None,
    ) -> Tensor:
        """Images in [-1, 1], one per prompt; equal seeds give equal noise whatever the batch.

        `adapter` may also be a name that `components.backbones.composition.compose` made.
        """
        ...

    def load_adapter(self, folder: Path, name: str) -> None:
        """Load an adapter folder under a name.

        Raises:
            IntegrityError: the folder does not match its manifest.
            InvalidInput: made for another base, or keys that match nothing.
        """
        ...

    def scale_adapter(self, name: str, factor: float) -> None:
        """Let an adapter's LoRA and weight differences act at `factor`, 1 being as trained; embeddings act in full.

        Raises:
            InvalidInput: the adapter has embeddings alone.
        """
        ...

    def remove_adapter(self, name: str) -> None: ...
