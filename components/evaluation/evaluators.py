"""The evaluators of a profile, loaded once and shared by many evaluations."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from components.errors import InvalidInput
from components.evaluation.encoders import (
    ClipEncoder,
    ClipParts,
    FeatureEncoder,
    ImageEncoder,
    resolve,
)
from components.evaluation.preference import ClipPreference, PreferenceScorer
from components.evaluation.preservation import Oracle
from components.evaluation.segmenters import Segmenter, load_segmenter
from components.evaluation.style_encoder import StyleEncoder
from components.files import folder_digests
from components.model_folder import is_weight_file
from components.settings import EvaluatorSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluators:
    """What judges the pictures; an evaluator that is None or absent gives no metric.

    Attributes:
        preferences: metric name (`hps`, `pickscore`) -> scorer.
        style: the style encoder of CSD.
        oracle: a judge of the world's attributes; there is none for photographs.
        oracle_info: which oracle it is.
    """

    clip: ClipEncoder
    dino: ImageEncoder
    segmenter: Segmenter
    style: ImageEncoder | None = None
    preferences: dict[str, PreferenceScorer] = field(default_factory=dict)
    oracle: Oracle | None = None
    oracle_info: dict[str, Any] = field(default_factory=dict)

    @property
    def info(self) -> dict[str, dict[str, Any]]:
        """Evaluator -> id, weights and preprocessing."""
        known = {"clip": self.clip.info, "dino": self.dino.info, "segmenter": self.segmenter.info}
        if self.style is not None:
            known["csd"] = self.style.info
        if self.oracle is not None:
            known["oracle"] = self.oracle_info
        return known | {name: scorer.info for name, scorer in self.preferences.items()}


def load_evaluators(settings: EvaluatorSettings, root: Path, device: torch.device) -> Evaluators:
    """Load the evaluators that a profile names.

    Args:
        root: the project's folder, which relative paths start from.

    Raises:
        InvalidInput: one cannot be loaded; it is named.
    """

    def path(name: str) -> str:
        return resolve(getattr(settings, name), root, f"evaluation.evaluators.{name}")

    preferences: dict[str, PreferenceScorer] = {}
    if settings.hps is not None:
        hps = path("hps")
        parts = ClipParts.of_hps(hps, path("clip"), device) if is_weight_file(hps) else None
        preferences["hps"] = ClipPreference(hps, device, scale=100.0, parts=parts)
    if settings.pickscore is not None:
        preferences["pickscore"] = ClipPreference(path("pickscore"), device)
    oracle, oracle_info = None, {}
    if settings.oracle is not None:
        folder = Path(path("oracle"))
        oracle = _load_oracle(folder)
        oracle_info = {"files_sha256": folder_digests(folder)}
    loaded = Evaluators(
        clip=ClipEncoder(path("clip"), device),
        dino=FeatureEncoder(path("dino"), device),
        segmenter=load_segmenter(path("segmenter"), device),
        style=None if settings.csd is None else StyleEncoder(path("csd"), device),
        preferences=preferences,
        oracle=oracle,
        oracle_info=oracle_info,
    )
    for name, info in loaded.info.items():
        info["id"] = getattr(settings, name)  # as the profile says it: a folder's absolute path differs by machine
    return loaded


def _load_oracle(folder: Path) -> Oracle:
    if not folder.is_dir():
        raise InvalidInput("no such oracle", file=folder, field="evaluation.evaluators.oracle")
    # Only the world has an oracle: nothing of it is needed for photographs.
    from components.world.oracle import Oracle as WorldOracle

    loaded: Oracle = WorldOracle.load(folder)
    return loaded
