"""Preference models: how well people would like a picture for a prompt (HPSv2.1, PickScore)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from components.evaluation.encoders import ClipEncoder, ClipParts
from components.evaluation.pictures import Picture


class PreferenceScorer(Protocol):
    """Scores how well a picture serves a prompt; higher is better."""

    @property
    def info(self) -> dict[str, Any]: ...

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(N,), one score per picture with its own prompt."""
        ...


class ClipPreference:
    """A preference model in CLIP's layout: `scale` times the cosine of picture and prompt.

    PickScore multiplies by its own exp(logit_scale); HPSv2.1 is reported as the cosine x 100 (METHOD section 8).
    """

    def __init__(
        self,
        path: str,
        device: torch.device,
        batch_size: int = 32,
        scale: float | None = None,
        parts: ClipParts | None = None,
    ):
        self._encoder = ClipEncoder(path, device, batch_size, parts)
        self._scale = self._encoder.logit_scale if scale is None else scale
        self.info: dict[str, Any] = {**self._encoder.info, "scale": self._scale}

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        images_ND, texts_ND = self._encoder.encode_images(pictures), self._encoder.encode_texts(prompts)
        return cast("NDArray[np.float64]", self._scale * (images_ND * texts_ND).sum(axis=1))
