"""Fidelity, preservation and KL against independent arithmetic, and what they say of pictures that are equal,
shuffled, or the reference itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.errors import InvalidInput
from components.evaluation import fidelity, preservation
from components.evaluation.divergence import MINIMUM_SAMPLES, gaussian_kl, shrinkage_intensity
from components.evaluation.encoders import ClipEncoder
from components.evaluation.metrics import GROUPS, METRICS
from components.evaluation.overlays import match_regions, overlay
from components.evaluation.prompts import Prompt
from components.evaluation.result import EvaluationResult, summarise
from components.evaluation.segmenters import Segment


def unit_rows(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_fidelity_is_the_mean_over_all_pairs() -> None:
    generated, references = unit_rows(5, 7, 0), unit_rows(3, 7, 1)
    pairs = [sum(a * b for a, b in zip(g, r, strict=True)) for g in generated for r in references]
    assert fidelity.cosine_to_references(generated, references).mean() == pytest.approx(sum(pairs) / len(pairs))
    distinct = [references[i] @ references[j] for i in range(3) for j in range(3) if i != j]
    assert fidelity.cosine_among(references) == pytest.approx(np.mean(distinct))
    assert fidelity.cosine_among(references[:1]) is None


def test_the_reference_itself_is_the_most_faithful() -> None:
    references = unit_rows(1, 7, 1)
    assert fidelity.cosine_to_references(references, references) == pytest.approx([1])
    assert (fidelity.cosine_to_references(unit_rows(20, 7, 3), references) < 1).all()


def disc(side: int, row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_a_cut_out_subject_knows_nothing_of_the_background() -> None:
    rng = np.random.default_rng(0)
    mask = disc(32, 10, 20, 6)
    pictures = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(2)]
    pictures[1][mask] = pictures[0][mask]
    first, second = (fidelity.cut_out(picture, mask) for picture in pictures)
    assert np.array_equal(first, second)
    assert first.shape[0] == first.shape[1] == round(13 * 1.2)
    kept = {tuple(pixel) for pixel in first.reshape(-1, 3)} - {(127, 127, 127)}
    assert kept == {tuple(pixel) for pixel in pictures[0][mask]}
    moved = np.roll(pictures[0], (5, -7), axis=(0, 1))
    assert np.array_equal(first, fidelity.cut_out(moved, np.roll(mask, (5, -7), axis=(0, 1))))


class GivenSegments:
    """A segmenter that answers what it was given."""

    info: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, names: tuple[str, ...], found: list[list[Segment]]):
        self.names, self._found = names, found

    def segments(self, pictures: Any) -> list[list[Segment]]:
        return self._found


def test_the_subject_is_the_object_that_clip_finds_closest_to_the_class(evaluator_models: Path) -> None:
    clip = ClipEncoder(str(evaluator_models / "clip"), torch.device("cpu"))
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    one, two = disc(32, 8, 8, 5), disc(32, 22, 22, 7)
    ground, speck = ~(one | two), disc(32, 2, 30, 0.5)
    text = clip.encode_texts(["star"])[0]
    closest = max((one, two), key=lambda mask: float(clip.encode_images([fidelity.cut_out(picture, mask)])[0] @ text))
    objects = [Segment(one, "object"), Segment(two, "object"), Segment(speck, "object")]
    named = GivenSegments(("object", "snow"), [[Segment(ground, "snow"), *objects], [Segment(ground, "snow")]])
    with_things, without = fidelity.find_layouts([picture, picture], named, clip, "star")
    assert np.array_equal(with_things.subject, closest)
    assert np.array_equal(with_things.foreground, one | two | speck)
    assert without.subject is None
    assert not without.foreground.any()
    unnamed = GivenSegments((), [[Segment(one), Segment(speck)]])
    (layout,) = fidelity.find_layouts([picture], unnamed, clip, "star")
    assert np.array_equal(layout.subject, one)
    assert np.array_equal(layout.foreground, one)
    shown = fidelity.subjects([picture, picture], [with_things, without])
    assert np.array_equal(shown[0], fidelity.cut_out(picture, closest))
    assert np.array_equal(shown[1], picture), "a missing subject is judged on the whole picture, not left out"


def test_distances_are_zero_for_equal_pictures_and_exact_for_others(pictures) -> None:
    first, second = pictures[0], pictures[1]
    assert preservation.pixel_distance(first, first) == 0
    total = sum(abs(int(a) - int(b)) for a, b in zip(first.reshape(-1), second.reshape(-1), strict=True))
    assert preservation.pixel_distance(first, second) == pytest.approx(total / first.size / 255)
    within = disc(32, 10, 10, 4)
    changed = first.copy()
    changed[~within] = 255 - changed[~within]
    assert preservation.pixel_distance(first, changed, within=within) == 0
    assert preservation.pixel_distance(first, changed, within=~within) > 0
    assert np.isnan(preservation.pixel_distance(first, second, within=np.zeros((32, 32), dtype=bool)))
    black, white = np.zeros_like(first), np.full_like(first, 255)
    assert preservation.pixel_distance(black, white) == 1
    rows = unit_rows(4, 6, 2)
    np.testing.assert_allclose(preservation.cosine_distance(rows, rows), 0, atol=1e-12)
    np.testing.assert_allclose(preservation.cosine_distance(rows, -rows), 2)
    np.testing.assert_allclose(preservation.clip_t(rows, rows), 100)


PROMPTS = [
    Prompt(0, "a", "", "", True, {"background": "snow", "position": "left"}),
    Prompt(1, "a", "", "", True, {"background": "brick"}),
    Prompt(2, "a", "", "", True, {"position": "right"}),
    Prompt(3, "a", "", "", True, {}),
]


class TableOracle:
    """An oracle that reads its answer from the first pixel of a picture."""

    labels: dict[str, list[str]] = {"background": ["brick", "snow", "sand"], "position": ["left", "right"]}  # noqa: RUF012

    def probabilities(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        code = ((images_BCHW[:, :, 0, 0] + 1) * 127.5).round().long()
        return {
            "background": torch.nn.functional.one_hot(code[:, 0], 3).float(),
            "position": torch.nn.functional.one_hot(code[:, 1], 2).float(),
        }


def coded(background: int, position: int) -> np.ndarray:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[0, 0] = (background, position, 0)
    return picture


def test_accuracy_counts_what_was_asked_for() -> None:
    shown = [coded(1, 1), coded(1, 0), coded(0, 1), coded(0, 0)]
    predicted = preservation.judge(TableOracle(), shown, batch_size=3).predicted
    assert predicted == {
        "background": ["snow", "snow", "brick", "brick"],
        "position": ["right", "left", "right", "left"],
    }
    correct = preservation.correctness(predicted, PROMPTS)
    np.testing.assert_array_equal(correct["background"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(correct["position"], [0, np.nan, 1, np.nan])
    np.testing.assert_array_equal(preservation.mean_over_attributes(correct), [0.5, 0, 1, np.nan])


def test_leakage_is_the_references_background_where_another_was_asked() -> None:
    predicted = {"background": ["brick", "brick", "brick", "brick"], "position": ["left"] * 4}
    np.testing.assert_array_equal(preservation.leakage(predicted, PROMPTS, "brick"), [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(preservation.leakage(predicted, PROMPTS, "sand"), [0, 0, np.nan, np.nan])
    assert preservation.majority(["brick", "snow", "brick"]) == "brick"
    assert preservation.majority(["brick", "snow"]) is None
    assert preservation.majority([]) is None


@pytest.mark.parametrize("expect", [{"background": "lava"}, {"mood": "calm"}])
def test_an_expectation_that_no_oracle_can_judge_is_refused(expect: dict[str, str]) -> None:
    preservation.check_expectations(TableOracle(), PROMPTS)
    with pytest.raises(InvalidInput, match=next(iter(expect.values()))):
        preservation.check_expectations(TableOracle(), [Prompt(0, "a", "", "a star", True, expect)])


def test_kl_is_the_closed_form_where_nothing_is_shrunk() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, 1.0, (4000, 1)), rng.normal(0.0, 1.7, (4000, 1))
    m, v, n, w = first.mean(), first.var(), second.mean(), second.var()
    # In one dimension the shrinkage target is the variance itself: the estimate is the textbook formula.
    expected = np.log(np.sqrt(w / v)) + (v + (m - n) ** 2) / (2 * w) - 0.5
    assert gaussian_kl(first, second) == pytest.approx(expected, rel=1e-9)
    assert gaussian_kl(second, first) != pytest.approx(expected, rel=0.05), "KL has a direction"


def test_kl_of_wide_features_is_near_the_truth_with_many_pictures() -> None:
    rng = np.random.default_rng(1)
    width = 5
    mix = rng.standard_normal((width, width))
    truth_c, truth_o = mix @ mix.T + np.eye(width), np.diag(np.arange(1.0, width + 1))
    shift = np.linspace(0, 1, width)
    first = rng.multivariate_normal(shift, truth_c, 20000)
    second = rng.multivariate_normal(np.zeros(width), truth_o, 20000)
    inverse = np.linalg.inv(truth_o)
    log_ratio = np.log(np.linalg.det(truth_o) / np.linalg.det(truth_c))
    expected = (np.trace(inverse @ truth_c) - width + shift @ inverse @ shift + log_ratio) / 2
    assert gaussian_kl(first, second) == pytest.approx(expected, rel=0.05)


def test_kl_anchors() -> None:
    rows = unit_rows(MINIMUM_SAMPLES, 64, 4)
    assert gaussian_kl(rows, rows) == pytest.approx(0, abs=1e-9)
    assert gaussian_kl(rows, rows[::-1]) == pytest.approx(0, abs=1e-9), "the order of the pictures is without effect"
    values = [gaussian_kl(rows + shift, rows) for shift in (0.0, 0.05, 0.1, 0.3)]
    assert values == sorted(values)
    assert values[-1] > values[0] + 1
    equal = np.repeat(rows[:1], MINIMUM_SAMPLES, axis=0)
    assert np.isfinite(gaussian_kl(equal, equal)), "no variance at all"
    with pytest.raises(ValueError, match="at least"):
        gaussian_kl(rows[:-1], rows)


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    samples = np.random.default_rng(2).standard_normal((12, 7)) * np.arange(1, 8)
    centred = samples - samples.mean(axis=0)
    covariance = sum(np.outer(row, row) for row in centred) / len(centred)
    target = np.trace(covariance) / 7 * np.eye(7)
    distance = np.sum((covariance - target) ** 2)
    error = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in centred) / len(centred) ** 2
    assert shrinkage_intensity(samples) == pytest.approx(min(error, distance) / distance)
    assert 0 < shrinkage_intensity(samples) < 1
    many = np.random.default_rng(3).standard_normal((5000, 3)) * [1, 2, 3]
    assert shrinkage_intensity(many) < 0.01


def row(repetition: int, **values: float) -> dict[str, Any]:
    return {"repetition": repetition, "values": values, "category": "a"}


def test_summary_is_the_mean_over_pairs_with_its_spread() -> None:
    metrics, spread = summarise([row(0, a=1.0, b=5.0), row(0, a=2.0), row(1, a=6.0), row(1, a=7.0)])
    assert metrics == {"a": 4.0, "b": 5.0}
    assert spread["a"]["seeds"] == pytest.approx(np.std([1.5, 6.5], ddof=1))
    assert spread["a"]["prompts"] == pytest.approx(np.std([1, 2, 6, 7], ddof=1) / 2)
    assert spread["b"] == {"seeds": None, "prompts": None}


def test_results_survive_the_disk_and_others_are_refused(tmp_path: Path) -> None:
    result = EvaluationResult({"a": 1.0}, [row(0, a=1.0)], {"a": {"seeds": None, "prompts": 0.1}}, ["r.png"])
    result.save(tmp_path)
    again = EvaluationResult.from_json(tmp_path)
    assert again.to_json() == result.to_json()
    assert again.folder == tmp_path
    assert again.by_category("a") == {"a": 1.0}
    for text in ("", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "metrics": {}, "rows": [], "more": 1}'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(InvalidInput):
            EvaluationResult.from_json(tmp_path)
    with pytest.raises(InvalidInput, match="not an evaluation"):
        EvaluationResult.from_json(tmp_path / "none")
    with pytest.raises(ValueError, match="JSON"):
        EvaluationResult({"a": float("nan")}, []).save(tmp_path)


def test_regions_that_correspond_get_one_number() -> None:
    onto = np.zeros((8, 8), dtype=np.int64)
    onto[:, :4], onto[:, 4:] = 1, 2
    partition = np.zeros((8, 8), dtype=np.int64)
    partition[:, :5], partition[:4, 5:], partition[7, 7] = 7, 3, 9
    matched = match_regions(partition, onto)
    assert set(np.unique(matched[partition == 7])) == {1}
    assert set(np.unique(matched[partition == 3])) == {2}
    assert set(np.unique(matched[partition == 9])) == {3}, "too small to correspond: a number of its own"
    assert not matched[partition == 0].any()
    picture = np.full((8, 8, 3), 100, dtype=np.uint8)
    drawn = overlay(picture, matched)
    assert drawn.shape == (192, 192, 3)
    assert np.array_equal(drawn[-20, 130], picture[0, 0]), "a pixel of no region keeps its colour"
    assert not np.array_equal(drawn[30, 30], picture[0, 0])


def test_every_metric_belongs_to_one_group() -> None:
    grouped = [key for _, _, keys in GROUPS for key in keys]
    assert sorted(grouped) == sorted(METRICS)
