"""Whole evaluations on small random evaluators, with adapters whose effect is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.evaluation.pictures import read_png
from components.evaluation.result import EvaluationResult
from components.settings import EvaluatorSettings, Profile, load_profile
from components.world.oracle import attribute_labels


@pytest.fixture
def profile(project: Path, evaluator_models: Path) -> Profile:
    names = {name: str(evaluator_models / name) for name in ("clip", "dino", "segmenter")}
    overrides = [f"evaluation.evaluators.{name}={path}" for name, path in names.items()]
    settings = [
        *(f"evaluation.evaluators.{name}=null" for name in ("oracle", "csd", "hps", "pickscore")),
        "base.resolution=32",
        "evaluation.seeds=1",
    ]
    return load_profile("tiny", [*overrides, *settings])


class BrightnessOracle:
    """Sees brick, and the look `striped`, in dark pictures, and snow and `red` in bright ones."""

    labels = attribute_labels()

    def probabilities(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = images_BCHW.mean(dim=(1, 2, 3)) > 0
        tables = {}
        for attribute, labels in self.labels.items():
            dark_label, bright_label = {
                "background": ("brick", "snow"),
                "look": ("striped", "red"),
            }.get(attribute, (labels[0], labels[1]))
            index = torch.where(bright, labels.index(bright_label), labels.index(dark_label))
            tables[attribute] = torch.nn.functional.one_hot(index, len(labels)).float()
        return tables


@pytest.fixture(scope="session")
def evaluators(evaluator_models: Path) -> Evaluators:
    names = {name: str(evaluator_models / name) for name in ("clip", "dino", "segmenter")}
    names |= {"csd": str(evaluator_models / "csd"), "pickscore": names["clip"], "hps": names["clip"]}
    loaded = load_evaluators(EvaluatorSettings(**names), Path("/"), torch.device("cpu"))
    return dataclasses.replace(loaded, oracle=BrightnessOracle())


def make_dark(concept: Concept) -> None:
    for reference in concept.references:
        Image.fromarray((np.asarray(Image.open(reference.path)) * 0.3).astype(np.uint8)).save(reference.path)


def test_an_evaluation_from_the_profile_alone(backbone, concept, profile, tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    out = tmp_path / "out"
    result = evaluate(
        backbone, "x", concept, profile, out, tmp_path / "cache", progress=lambda *event: told.append(event)
    )
    again = EvaluationResult.from_json(out)
    assert again.to_json() == result.to_json()
    assert told
    assert all(0 < done <= of for _, done, of in told)
    for key in ("fidelity/clip_i", "fidelity/dino", "fidelity/dino_masked", "preservation/clip_t_delta",
                "preservation/seg_cons", "preservation/seg_cons_floor", "preservation/seg_cons_background",
                "preservation/outside_distance", "preservation/prior_distance", "preservation/kl"):  # fmt: skip
        assert np.isfinite(result.metrics[key]), key
    assert not any("accuracy" in key for key in result.metrics), "no oracle, no accuracy"
    # The adapter of this backbone acts on the concept alone.
    assert result.metrics["preservation/prior_distance"] == 0
    assert result.metrics["preservation/prior_dino_distance"] == pytest.approx(0, abs=1e-12)
    assert result.metrics["preservation/prior_seg_cons"] == 100
    assert result.metrics["preservation/prior_distance_floor"] > 0.02
    content = json.loads((out / "evaluation.json").read_text())
    assert content["settings"]["base"]["fingerprint"] == "base-1"
    assert content["evaluators"]["dino"]["weights_sha256"]
    assert str(tmp_path) not in json.dumps(content["settings"])
    for row in result.rows:
        for path in (*row["images"].values(), *row["masks"].values()):
            assert (out / path).is_file()


def test_figures_can_be_recomputed_from_the_files(backbone, concept, profile, evaluators, tmp_path) -> None:
    result = evaluate(backbone, "x", concept, profile, tmp_path, tmp_path / "cache", evaluators=evaluators)
    references = evaluators.dino.encode_images([read_png(tmp_path / path) for path in result.references])
    rows = [row for row in result.rows if row["has_concept"]]
    custom = evaluators.dino.encode_images([read_png(tmp_path / row["images"]["custom"]) for row in rows])
    expected = np.mean([c @ r for c in custom for r in references])
    assert result.metrics["fidelity/dino"] == pytest.approx(expected)
    texts = evaluators.clip.encode_texts([row["base"] for row in rows])
    scores = []
    for which in ("custom", "original"):
        images = evaluators.clip.encode_images([read_png(tmp_path / row["images"][which]) for row in rows])
        scores.append(np.mean([100 * image @ text for image, text in zip(images, texts, strict=True)]))
    assert result.metrics["preservation/clip_t_delta"] == pytest.approx(scores[0] - scores[1])
    scale = evaluators.preferences["pickscore"].info["scale"]
    expected = scale * (scores[0] - scores[1]) / 100
    assert result.metrics["preservation/pickscore_delta"] == pytest.approx(expected)


def test_an_adapter_without_effect_preserves_everything(backbone, concept, profile, evaluators, tmp_path) -> None:
    class Untouched(type(backbone)):
        def sample(self, *arguments: Any, adapter: str | None, **keywords: Any) -> torch.Tensor:
            return super().sample(*arguments, adapter=None, **keywords)

    result = evaluate(Untouched(), "x", concept, profile, tmp_path, tmp_path / "cache", evaluators=evaluators)
    metrics = result.metrics
    for key in ("clip_t_delta", "hps_delta", "pickscore_delta", "accuracy_delta", "outside_distance", "kl",
                "prior_distance", "prior_hps_delta"):  # fmt: skip
        assert metrics[f"preservation/{key}"] == pytest.approx(0, abs=1e-9), key
    for key in ("seg_cons", "seg_cons_background", "prior_seg_cons"):
        assert metrics[f"preservation/{key}"] == pytest.approx(100), key
    for key in ("fidelity/clip_i", "fidelity/dino", "fidelity/dino_masked", "preservation/background_similarity"):
        assert metrics[key] == pytest.approx(metrics[f"{key}_original"])
    assert metrics["preservation/seg_cons_floor"] < 100
    assert metrics["preservation/kl_floor"] > 0.01


def test_an_adapter_that_copies_the_references_is_faithful_and_leaks(
    backbone, concept, profile, evaluators, tmp_path
) -> None:
    make_dark(concept)
    picture = torch.from_numpy(np.asarray(Image.open(concept.references[0].path)).copy())
    copied = picture.permute(2, 0, 1).float() / 127.5 - 1

    class Copying(type(backbone)):
        def sample(self, text: Any, negative: Any, *, seeds: Sequence[int], adapter: str | None, **rest: Any) -> Any:
            if adapter is None:
                return super().sample(text, negative, seeds=seeds, adapter=None, **rest).abs()
            return copied.expand(len(seeds), -1, -1, -1)

    result = evaluate(Copying(), "x", concept, profile, tmp_path, tmp_path / "cache", evaluators=evaluators)
    metrics = result.metrics
    assert metrics["fidelity/dino"] > metrics["fidelity/dino_original"]
    assert metrics["fidelity/recognised"] == 1
    assert metrics["fidelity/recognised_original"] == 0
    assert metrics["fidelity/recognised_probability"] == 1
    assert metrics["preservation/background_leakage"] == 1
    assert metrics["preservation/background_leakage_original"] == 0
    assert metrics["preservation/accuracy_delta/background"] < 0
    assert metrics["preservation/kl"] > metrics["preservation/kl_floor"]
    assert metrics["preservation/prior_distance"] > 0.1
    recognised = [row for row in result.rows if "fidelity/recognised" in row["values"]]
    assert recognised
    assert {row["category"] for row in recognised}.isdisjoint({"company", "colour change", "without the concept"})


def test_styles_are_judged_as_styles(backbone, concept, profile, evaluators, tmp_path) -> None:
    style = dataclasses.replace(concept, name="blueprint", kind="style", class_word="style")
    result = evaluate(backbone, "x", style, profile, tmp_path, tmp_path / "cache", evaluators=evaluators)
    assert "fidelity/csd" in result.metrics
    assert "fidelity/dino_masked" not in result.metrics
    assert "preservation/outside_distance" not in result.metrics
    assert all(", in [V] style" in row["complete"] for row in result.rows if row["has_concept"])


def test_at_scale_zero_nothing_is_changed_and_the_adapter_is_left_as_it_was(
    backbone, concept, profile, evaluators, tmp_path
) -> None:
    def at(scale: float) -> EvaluationResult:
        return evaluate(
            backbone, "x", concept, profile, tmp_path / "out", tmp_path / "cache", evaluators=evaluators,
            adapter_digest="d" * 64, adapter_scale=scale,
        )  # fmt: skip

    none, half, full = (at(scale) for scale in (0.0, 0.5, 1.0))
    assert backbone.scale == 1
    assert none.settings["adapter_scale"] == 0
    assert none.metrics["preservation/clip_t_delta"] == pytest.approx(0, abs=1e-9)
    assert none.metrics["fidelity/dino"] == pytest.approx(none.metrics["fidelity/dino_original"])
    assert none.metrics["preservation/outside_distance"] == 0
    assert half.metrics["preservation/kl"] < full.metrics["preservation/kl"]
    assert at(1.0).to_json() == full.to_json(), "a picture of another scale is not taken for one of this"


def test_another_seed_is_the_floor_not_the_customized_picture(backbone, concept, profile, evaluators, tmp_path) -> None:
    """The floor of every metric is what the original model gives from another seed: were it the customized picture."""

    class Reseeded(type(backbone)):
        def sample(self, text: Any, negative: Any, *, seeds: Sequence[int], adapter: str | None, **rest: Any) -> Any:
            other = [seed + 1 for seed in seeds] if adapter else list(seeds)
            return super().sample(text, negative, seeds=other, adapter=None, **rest)

    metrics = evaluate(Reseeded(), "x", concept, profile, tmp_path, tmp_path / "cache", evaluators=evaluators).metrics
    assert 0 < metrics["preservation/prior_distance"] < 2 * metrics["preservation/prior_distance_floor"]
    assert metrics["preservation/prior_distance"] > 0.5 * metrics["preservation/prior_distance_floor"]
    assert metrics["preservation/seg_cons"] < 100
    assert metrics["preservation/kl"] < 3 * metrics["preservation/kl_floor"] + 1


def test_shuffled_pictures_are_the_same_distribution_and_the_wrong_pairs(
    backbone, concept, profile, evaluators, tmp_path
) -> None:
    class Shuffling(type(backbone)):
        def sample(self, text: Any, negative: Any, *, seeds: Sequence[int], adapter: str | None, **rest: Any) -> Any:
            order = [*range(1, len(seeds)), 0] if adapter else list(range(len(seeds)))
            moved = [seeds[place] for place in order]
            return super().sample(text.select(order), negative, seeds=moved, adapter=None, **rest)

    metrics = evaluate(Shuffling(), "x", concept, profile, tmp_path, tmp_path / "cache", evaluators=evaluators).metrics
    assert metrics["preservation/kl"] == pytest.approx(0, abs=1e-9)
    for key in ("clip_i", "dino"):
        assert metrics[f"fidelity/{key}"] == pytest.approx(metrics[f"fidelity/{key}_original"]), "all pairs: no order"
    assert metrics["preservation/prior_distance"] > 0.02
    assert metrics["preservation/prior_dino_distance"] > 0
    assert metrics["preservation/seg_cons"] < 100
    assert metrics["preservation/clip_t_delta"] != pytest.approx(0, abs=1e-6), "each with another's text"


def test_the_same_evaluation_twice_gives_the_same_numbers(backbone, concept, profile, evaluators, tmp_path) -> None:
    first = evaluate(backbone, "x", concept, profile, tmp_path / "a", tmp_path / "c", evaluators=evaluators)
    cold = evaluate(backbone, "x", concept, profile, tmp_path / "b", tmp_path / "d", evaluators=evaluators)
    warm = evaluate(backbone, "x", concept, profile, tmp_path / "e", tmp_path / "c", evaluators=evaluators)
    assert first.to_json() == cold.to_json() == warm.to_json()
    bytes_of = [
        [(tmp_path / folder / row["images"]["custom"]).read_bytes() for row in first.rows] for folder in ("a", "b", "e")
    ]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


def test_an_interrupted_evaluation_leaves_no_result_and_resumes(
    backbone, concept, profile, evaluators, tmp_path
) -> None:
    def run() -> EvaluationResult:
        return evaluate(
            backbone, "x", concept, profile, tmp_path / "out", tmp_path / "cache",
            evaluators=evaluators, adapter_digest="d" * 64,
        )  # fmt: skip

    backbone.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "out" / "evaluation.json").exists()
    drawn = len(backbone.calls)
    backbone.fail_after = None
    run()
    assert all(call not in backbone.calls[drawn:] for call in backbone.calls[:drawn])
    assert not list((tmp_path / "cache" / "custom").iterdir()), "the resumed pictures are not needed any more"


def test_nothing_is_drawn_for_a_prompt_set_that_the_oracle_cannot_judge(
    backbone, concept, profile, evaluators, project, tmp_path
) -> None:
    (project / "profiles/prompts/odd.yaml").write_text(
        'name: odd\ncategories:\n  a:\n    - {template: "a {concept}", expect: {background: lava}}\n'
        '    - {template: "a heart"}\n'
    )
    settings = profile.evaluation.model_copy(update={"prompts": "profiles/prompts/odd.yaml"})
    with pytest.raises(InvalidInput, match="lava"):
        evaluate(
            backbone, "x", concept, profile.model_copy(update={"evaluation": settings}),
            tmp_path / "out", tmp_path / "cache", evaluators=evaluators,
        )  # fmt: skip
    assert not backbone.calls
    assert not (tmp_path / "out").exists()
