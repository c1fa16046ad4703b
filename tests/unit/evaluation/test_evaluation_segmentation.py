"""Seg-Cons and the segmenters against brute force on sets of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.errors import InvalidInput
from components.evaluation.segmentation import paint, seg_cons
from components.evaluation.segmenters import (
    SMALLEST,
    SamSegmenter,
    SemanticSegmenter,
    box_of,
    connected_components,
    load_segmenter,
    masks,
    suppress,
)

CPU = torch.device("cpu")
SHAPE = (5, 6)
partitions = arrays(np.int64, SHAPE, elements=st.integers(0, 4))
quick = settings(max_examples=40, deadline=None)
mask_lists = st.lists(arrays(np.bool_, SHAPE), max_size=5)


def pixel_sets(partition: np.ndarray, within: np.ndarray | None = None) -> list[set[tuple[int, int]]]:
    regions: dict[int, set[tuple[int, int]]] = {}
    for row in range(partition.shape[0]):
        for column in range(partition.shape[1]):
            number = int(partition[row, column])
            if number and (within is None or within[row, column]):
                regions.setdefault(number, set()).add((row, column))
    return list(regions.values())


def brute_force(first: list[set], second: list[set]) -> float:
    def covering(a: list[set], b: list[set]) -> float:
        best = [max(len(one & other) / len(one | other) for other in b) for one in a]
        return sum(len(one) * value for one, value in zip(a, best, strict=True)) / sum(len(one) for one in a)

    if not first or not second:
        return 100.0 if not first and not second else 0.0
    return 100 * (covering(first, second) + covering(second, first)) / 2


@quick
@given(partitions, partitions, arrays(np.bool_, SHAPE))
def test_seg_cons_is_the_formula(first, second, within) -> None:
    value = seg_cons(first, second)
    assert value == pytest.approx(brute_force(pixel_sets(first), pixel_sets(second)))
    assert 0 <= value <= 100 + 1e-9
    assert value == pytest.approx(seg_cons(second, first))
    inside = brute_force(pixel_sets(first, within), pixel_sets(second, within))
    assert seg_cons(first, second, within=within) == pytest.approx(inside)


@quick
@given(partitions, st.permutations([1, 2, 3, 4]))
def test_equal_sets_score_100_whatever_the_numbers(partition, numbers) -> None:
    renumbered = np.array([0, *numbers])[partition] * 10
    assert seg_cons(partition, renumbered) == pytest.approx(100)


def test_seg_cons_falls_as_a_region_moves_away() -> None:
    def scene(shift: int) -> np.ndarray:
        thing = np.zeros((32, 32), dtype=bool)
        thing[8:20, 4 + shift : 16 + shift] = True
        return paint([thing, ~thing], thing.shape)

    values = [seg_cons(scene(0), scene(shift)) for shift in (0, 2, 4, 8)]
    assert values[0] == 100
    assert values == sorted(values, reverse=True)
    shuffled = np.random.default_rng(0).permutation(scene(0).reshape(-1)).reshape(32, 32)
    assert seg_cons(scene(0), shuffled) < values[-1]


def test_seg_cons_wants_one_shape() -> None:
    with pytest.raises(ValueError, match="shapes"):
        seg_cons(np.ones((2, 2), dtype=np.int64), np.ones((2, 3), dtype=np.int64))


@quick
@given(mask_lists, st.randoms())
def test_painting_gives_each_pixel_to_the_smallest_mask_there(given_masks, random) -> None:
    partition = paint(given_masks, SHAPE)
    for row, column in np.ndindex(SHAPE):
        there = [mask for mask in given_masks if mask[row, column]]
        assert bool(partition[row, column] > 0) is bool(there)
        if there:
            area = min(int(mask.sum()) for mask in there)
            winners = [mask for mask in there if int(mask.sum()) == area]
            region = partition == partition[row, column]
            assert any((region <= mask).all() for mask in winners)
    shuffled = list(given_masks)
    random.shuffle(shuffled)
    assert np.array_equal(partition, paint(shuffled, SHAPE))


def flood(classes: np.ndarray) -> list[set[tuple[int, int]]]:
    left = {(row, column) for row, column in np.ndindex(*classes.shape)}
    regions = []
    while left:
        queue = [min(left)]
        region = set()
        while queue:
            pixel = queue.pop()
            if pixel in region:
                continue
            region.add(pixel)
            for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                beside = (pixel[0] + step[0], pixel[1] + step[1])
                if beside in left and classes[beside] == classes[pixel]:
                    queue.append(beside)
        left -= region
        regions.append(region)
    return regions


@quick
@given(arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_connected_components_are_the_flooded_ones(classes) -> None:
    numbers = connected_components(classes)
    found = pixel_sets(numbers + 1)
    assert sorted(map(sorted, found)) == sorted(map(sorted, flood(classes)))
    firsts = [np.flatnonzero(numbers.reshape(-1) == number)[0] for number in range(numbers.max() + 1)]
    assert firsts == sorted(firsts)


def test_a_long_winding_region_is_one() -> None:
    classes = np.zeros((41, 41), dtype=np.int64)
    classes[1::2] = 1
    for row in range(1, 40, 2):
        classes[row, 40 if row % 4 == 1 else 0] = 0  # the gaps join all the zeros into one snake
    assert len(flood(classes)) == connected_components(classes).max() + 1


def test_semantic_segments_are_components_of_the_models_own_map(evaluator_models: Path, pictures) -> None:
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

    path = evaluator_models / "segmenter"
    segmenter = load_segmenter(str(path), CPU, batch_size=4)
    assert isinstance(segmenter, SemanticSegmenter)
    assert segmenter.names == ("object", "snow", "brick", "grass")
    model = SegformerForSemanticSegmentation.from_pretrained(path).eval()
    processor = SegformerImageProcessorPil.from_pretrained(path)
    with torch.no_grad():
        outputs = model(**processor(images=list(pictures), return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 32)] * len(pictures))
    assert len({int(value) for one in maps for value in one.unique()}) > 1, "the random model sees several classes"
    for segments, truth in zip(segmenter.segments(pictures), maps, strict=True):
        classes = truth.numpy()
        wanted = [region for region in flood(classes) if len(region) >= SMALLEST * classes.size]
        got = [{(int(r), int(c)) for r, c in np.argwhere(segment.mask)} for segment in segments]
        assert sorted(map(sorted, got)) == sorted(map(sorted, wanted))
        for segment in segments:
            assert {segmenter.names[value] for value in np.unique(classes[segment.mask])} == {segment.name}
    assert [len(one) for one in masks(segmenter, pictures)] == [len(one) for one in segmenter.segments(pictures)]


def test_sam_proposes_masks_of_the_pictures_own_size(evaluator_models: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    assert isinstance(load_segmenter(str(evaluator_models / "sam"), CPU), SamSegmenter)

    def found(**thresholds: float) -> list[np.ndarray]:
        segmenter = SamSegmenter(
            str(evaluator_models / "sam"), CPU, points_per_side=4, points_per_batch=3, **thresholds
        )
        return masks(segmenter, [picture])[0]

    everything = found(predicted_iou=-1e9, stability=0.0, overlap=1.0)
    assert everything
    assert all(mask.shape == (40, 60) and mask.dtype == np.bool_ for mask in everything)
    assert all(mask.mean() >= SMALLEST for mask in everything)
    assert len(found(predicted_iou=-1e9, stability=0.0, overlap=0.5)) < len(everything)
    assert found(predicted_iou=1e9, stability=0.0, overlap=1.0) == []


def test_sam_agrees_with_transformers_on_a_point(evaluator_models: Path) -> None:
    from transformers import SamImageProcessorPil, SamModel, SamProcessor

    path = evaluator_models / "sam"
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    model = SamModel.from_pretrained(path).eval()
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(path))
    inputs = processor(images=picture, input_points=[[[32.0, 32.0]]], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    truth = processor.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][0]
    segmenter = SamSegmenter(str(path), CPU, points_per_side=1, predicted_iou=-1e9, stability=0.0, overlap=1.0)
    wanted = {mask.numpy().tobytes() for mask in truth if mask.float().mean() >= SMALLEST}
    assert {mask.tobytes() for mask in masks(segmenter, [picture])[0]} == wanted


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
        mask = np.zeros((20, 20), dtype=bool)
        mask[top:bottom, left:right] = True
        return mask

    a, almost_a, apart = box(0, 0, 10, 10), box(0, 0, 10, 9), box(10, 10, 20, 20)
    assert box_of(almost_a) == (0, 0, 10, 9)
    kept = suppress([almost_a, apart, a], [0.8, 0.7, 0.9], overlap=0.7)
    assert [id(mask) for mask in kept] == [id(a), id(apart)]
    assert len(suppress([almost_a, apart, a], [0.8, 0.7, 0.9], overlap=0.95)) == 3
    assert suppress([], [], 0.5) == []


def test_what_is_no_segmenter_is_named(evaluator_models: Path) -> None:
    with pytest.raises(InvalidInput, match="dinov2"):
        load_segmenter(str(evaluator_models / "dino"), CPU)
