from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.evaluate import evaluate
from components.evaluation.pictures import read_png
from components.evaluation.result import EvaluationResult
from components.settings import Profile, load_profile


@pytest.fixture
def profile(project: Path, evaluator_models: Path) -> Profile:
    names = {name: str(evaluator_models / name) for name in ("clip", "dino", "segmenter")}
    overrides = [f"evaluation.evaluators.{name}={path}" for name, path in names.items()]
    return load_profile(
        "tiny", [*overrides, "evaluation.evaluators.oracle=null", "base.resolution=32", "evaluation.seeds=2"]
    )


def test_evaluation_end_to_end(backbone, concept, profile, tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    result = evaluate(
        backbone, "striped_star", concept, profile, tmp_path / "out", tmp_path / "cache",
        progress=lambda *event: told.append(event),
    )  # fmt: skip
    again = EvaluationResult.from_json(tmp_path / "out")
    assert again.metrics == result.metrics
    assert again.rows == result.rows
    assert told
    assert all(done <= of for _, done, of in told)
    for key in ("fidelity/clip_i", "fidelity/dino", "fidelity/dino_masked", "preservation/clip_t_delta",
                "preservation/seg_cons", "preservation/seg_cons_floor", "preservation/prior_distance",
                "preservation/kl"):  # fmt: skip
        assert np.isfinite(result.metrics[key]), key
    # The adapter of this backbone acts on the concept alone.
    assert result.metrics["preservation/prior_distance"] == 0
    assert result.metrics["preservation/prior_dino_distance"] == pytest.approx(0, abs=1e-12)
    assert result.metrics["preservation/prior_seg_cons"] == 100
    assert result.metrics["preservation/prior_distance_floor"] > 0.02
    row = next(row for row in result.rows if row["has_concept"])
    pair = [read_png(tmp_path / "out" / row["images"][which]).astype(float) for which in ("custom", "original")]
    assert np.abs(pair[0] - pair[1]).mean() > 5
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["settings"]["base"]["fingerprint"] == "base-1"
    assert content["evaluators"]["dino"]["weights_sha256"]
    assert str(tmp_path) not in json.dumps(content["settings"])
