from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluation.pictures import read_png, to_pictures, to_tensor, write_png
from components.evaluation.prompts import Prompt
from components.evaluation.sampling import Sample, draw_samples, seed_of
from components.settings import SamplingSettings

PROMPTS = [
    *(Prompt(index, "with", f"a [V] star {index}", f"a star {index}", True) for index in range(5)),
    *(Prompt(index, "without", f"a heart {index}", f"a heart {index}", False) for index in range(5, 8)),
]


def run(backbone: Any, cache: Path, **changes: Any) -> list[Sample]:
    settings: dict[str, Any] = {
        "repetitions": 2,
        "profile_seed": 0,
        "sampling": SamplingSettings(steps=4, guidance_scale=2, batch_size=2),
        "cache_dir": cache,
        "identity": {"dtype": "float32"},
        "adapter_digest": None,
    } | changes
    return draw_samples(backbone, "adapter", PROMPTS, **settings)


def same(first: list[Sample], second: list[Sample]) -> bool:
    return all(
        a.prompt == b.prompt and a.seed == b.seed and np.array_equal(getattr(a, which), getattr(b, which))
        for a, b in zip(first, second, strict=True)
        for which in ("custom", "original", "floor")
    )


def base_calls(backbone: Any) -> int:
    return sum(adapter is None for adapter, _ in backbone.calls)


def test_pairs_share_noise_and_texts_differ_by_the_identifier(backbone, tmp_path) -> None:
    samples = run(backbone, tmp_path)
    assert [(sample.prompt.index, sample.repetition) for sample in samples] == [
        (i, r) for i in range(8) for r in range(2)
    ]
    for sample in samples:
        difference = np.abs(sample.custom.astype(int) - sample.original.astype(int)).max()
        # This backbone's adapter shifts the colour where [V] is asked for and does nothing elsewhere: equal pictures
        # without the concept are only possible from the same noise.
        assert bool(difference == 0) is (not sample.prompt.has_concept)
        assert not np.array_equal(sample.original, sample.floor)
    assert all("[V]" not in prompt for adapter, prompts in backbone.calls if adapter is None for prompt in prompts)
    assert len({(sample.seed) for sample in samples}) == len(samples)


def test_seeds_depend_on_text_repetition_and_profile_only() -> None:
    moved = Prompt(7, "elsewhere", "a [V] star 0", "a star 0", True)
    assert seed_of(0, moved, 0) == seed_of(0, PROMPTS[0], 0)
    others = {seed_of(1, moved, 0), seed_of(0, moved, 1), seed_of(0, moved, 0, floor=True), seed_of(0, PROMPTS[1], 0)}
    assert seed_of(0, moved, 0) not in others
    assert len(others) == 4


def test_the_originals_pictures_are_drawn_once(backbone, tmp_path) -> None:
    first = run(backbone, tmp_path)
    backbone.calls.clear()
    assert same(first, run(backbone, tmp_path))
    assert base_calls(backbone) == 0
    assert backbone.calls, "the customized model's pictures are not kept without a digest"


@pytest.mark.parametrize("change", [
    {"identity": {"dtype": "bfloat16"}},
    {"sampling": SamplingSettings(steps=5, guidance_scale=2, batch_size=2)},
    {"sampling": SamplingSettings(steps=4, guidance_scale=3, batch_size=2)},
    {"profile_seed": 1},
])  # fmt: skip
def test_whatever_determines_a_picture_is_in_its_key(backbone, tmp_path, change) -> None:
    run(backbone, tmp_path)
    before = base_calls(backbone)
    run(backbone, tmp_path, **change)
    assert base_calls(backbone) == 2 * before


def test_another_base_is_drawn_anew(backbone, tmp_path) -> None:
    run(backbone, tmp_path)
    before = base_calls(backbone)
    backbone.fingerprint = "base-2"
    run(backbone, tmp_path)
    assert base_calls(backbone) == 2 * before


@pytest.mark.parametrize("damage", ["changed", "truncated", "digest removed"])
def test_a_damaged_picture_is_not_trusted(backbone, tmp_path, damage, caplog) -> None:
    first = run(backbone, tmp_path)
    victim = sorted((tmp_path / "original").rglob("*.png"))[0]
    if damage == "changed":
        write_png(victim, 255 - read_png(victim))
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:40])
    else:
        victim.with_suffix(".sha256").unlink()
    backbone.calls.clear()
    assert same(first, run(backbone, tmp_path))
    assert base_calls(backbone) == 1, "only the batch of that picture"
    assert ("does not match" in caplog.text) is (damage != "digest removed")


@pytest.mark.parametrize("calls", [1, 4, 9, 14])
def test_an_interrupted_run_resumes_with_the_same_bits(backbone, tmp_path, calls) -> None:
    whole = run(backbone, tmp_path / "whole", adapter_digest="d")
    total = len(backbone.calls)
    backbone.calls.clear()
    backbone.fail_after = calls
    with pytest.raises(KeyboardInterrupt):
        run(backbone, tmp_path / "broken", adapter_digest="d")
    backbone.fail_after = None
    assert same(whole, run(backbone, tmp_path / "broken", adapter_digest="d"))
    assert len(backbone.calls) == total, "no batch is drawn twice"


def test_pictures_survive_the_disk_and_the_models_range(tmp_path, pictures) -> None:
    write_png(tmp_path / "a.png", pictures[0])
    assert np.array_equal(read_png(tmp_path / "a.png"), pictures[0])
    tensor = to_tensor(pictures)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert all(np.array_equal(a, b) for a, b in zip(to_pictures(tensor), pictures, strict=True))
    assert to_pictures(tensor * 100)[0].max() == 255, "out of range is clipped, not wrapped"
