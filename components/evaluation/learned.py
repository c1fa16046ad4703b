"""The base with several concepts learned one after the other, evaluated for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from components.backbones.composition import sum_of
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import load_evaluators
from components.evaluation.result import EvaluationResult
from components.settings import Profile

_MODEL = "model"


class LearnedModel:
    """The base with the adapters of all learned concepts at once.

    Args:
        adapters: concept -> adapter folder, in the order in which they were learned; each stands on those before it.
        root: the project's folder, from which the evaluators' paths count.
    """

    def __init__(self, adapters: Mapping[str, Path], profile: Profile, root: Path):
        self._backbone = SD3Backbone.load(profile.base)
        for name, folder in adapters.items():
            self._backbone.load_adapter(folder, f"learned/{name}")
        self._weights = sum_of(self._backbone, [f"learned/{name}" for name in adapters])
        self._judges = load_evaluators(profile.evaluation.evaluators, root, self._backbone.device)

    def evaluate(self, concept: Concept, profile: Profile, target: Path, originals: Path) -> EvaluationResult:
        """One concept's prompts, with its own embeddings if it is among the learned ones.

        Args:
            target: the folder that the evaluation fills.
            originals: cache of the original model's pictures.
        """
        own = f"learned/{concept.name}"
        adapted = self._backbone.adapted
        embeddings = adapted[own].embeddings if own in adapted.names else None
        rows_NRD = None if embeddings is None else embeddings.Y_NRD.detach()
        self._backbone.create_adapter(_MODEL, concept=concept.name, weights=self._weights, embeddings_NRD=rows_NRD)
        try:
            return evaluate(self._backbone, _MODEL, concept, profile, target, originals, evaluators=self._judges)
        finally:
            self._backbone.remove_adapter(_MODEL)
