"""lambda* on the prompts of an evaluation, where its value follows from what the adapter is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.backbones.sd3 import SD3Backbone
from components.benchmark.prompt_guidance import guidance_by_category
from components.concepts.concept import Concept
from components.evaluation.lambda_study import PROMPT_COSINE, PROMPT_LAMBDA
from components.evaluation.pictures import write_png
from components.evaluation.result import EvaluationResult
from components.learning import NullTracker, train_extractor
from components.settings import Profile


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for number, (category, complete, base) in enumerate(
        [
            ("background", "a [V] star, snow background", "a star, snow background"),
            ("background", "a [V] star, brick background", "a star, brick background"),
            ("without the concept", "a heart on the left", "a heart on the left"),
        ]
    ):
        image = f"images/original/{number}.png"
        write_png(tmp_path / image, random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        rows.append(
            {"category": category, "complete": complete, "base": base, "seed": number, "images": {"original": image}}
        )
    EvaluationResult({}, rows).save(tmp_path)
    return tmp_path


def test_an_extractor_follows_all_of_its_own_guidance_and_none_where_the_concept_is_not_called(
    backbone: SD3Backbone, concept: Concept, profile: Callable[..., Profile], evaluated: Path, tmp_path: Path
) -> None:
    # Embeddings act through the concept's word alone: so on the base text theta1 is the base, and with the guidance
    # "complete less base" R_cb of theta1 itself is R_tar.
    settings = profile("learning.guidance=complete-base", "learning.extractor.embedding_learning_rate=0.1")
    extractor = train_extractor(backbone, concept, settings, tmp_path / "work", NullTracker())
    backbone.load_adapter(extractor, "measured")
    try:
        rows = guidance_by_category(backbone, "measured", concept, settings.learning, extractor, evaluated)
    finally:
        backbone.remove_adapter("measured")
    found = {(row["category"], row["metric"]): row["value"] for row in rows}
    assert found == {
        ("background", PROMPT_LAMBDA): pytest.approx(1, abs=1e-4),
        ("background", PROMPT_COSINE): pytest.approx(1, abs=1e-4),
        ("without the concept", PROMPT_LAMBDA): 0,
        ("without the concept", PROMPT_COSINE): 0,
    }


def test_the_untouched_part_is_measured_against_the_null_texts_guidance_too(
    backbone: SD3Backbone, concept: Concept, profile: Callable[..., Profile], evaluated: Path, tmp_path: Path
) -> None:
    """Against the null text R_tar is there on every prompt; an adapter of embeddings still does nothing uncalled."""
    settings = profile("learning.extractor.embedding_learning_rate=0.1")
    extractor = train_extractor(backbone, concept, settings, tmp_path / "work", NullTracker())
    backbone.load_adapter(extractor, "measured")
    try:
        rows = guidance_by_category(backbone, "measured", concept, settings.learning, extractor, evaluated)
        again = guidance_by_category(backbone, "measured", concept, settings.learning, extractor, evaluated)
    finally:
        backbone.remove_adapter("measured")
    found = {(row["category"], row["metric"]): row["value"] for row in rows}
    assert found["without the concept", PROMPT_LAMBDA] == pytest.approx(0, abs=1e-4)
    assert abs(found["background", PROMPT_LAMBDA]) > 1e-3
    assert rows == again
