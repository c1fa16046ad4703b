"""ONNX: every shape that consumers use, against torch; and the sampler's arithmetic against diffusers'."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from components.backbones.sd3 import SD3Backbone
from components.errors import IntegrityError, InvalidInput
from components.export.onnx_folder import export_onnx
from components.export.onnx_sampler import OnnxSampler, euler_sigmas

PROMPTS = ["a <striped_star> star on the left", "a red circle", "<striped_star> and <striped_star>"]


@pytest.fixture(scope="module")
def exported(backbone: SD3Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    out = export_onnx(
        backbone, "striped_star", tmp_path_factory.mktemp("onnx") / "out", {"steps": 3, "guidance_scale": 4.0}
    )
    after = backbone.transformer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # folding left nothing behind
    return out


@pytest.fixture(scope="module")
def sampler(exported: Path) -> OnnxSampler:
    return OnnxSampler(exported, ["CPUExecutionProvider"])


def by_torch(backbone: SD3Backbone, prompts: list[str], seeds: list[int], scale: float) -> np.ndarray:
    return backbone.sample(
        backbone.encode_text(prompts),
        backbone.encode_text([""]),
        seeds=seeds,
        steps=3,
        guidance_scale=scale,
        adapter="striped_star",
    ).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "scale"), [(1, 4.0), (3, 4.0), (2, 1.0)])
def test_images_equal_torchs(backbone: SD3Backbone, sampler: OnnxSampler, count: int, scale: float) -> None:
    prompts, seeds = PROMPTS[:count], list(range(count))
    ours = sampler.sample(prompts, seeds, steps=3, guidance_scale=scale)
    theirs = by_torch(backbone, prompts, seeds, scale)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3
    plain = backbone.sample(
        backbone.encode_text(prompts),
        backbone.encode_text([""]),
        seeds=seeds,
        steps=3,
        guidance_scale=scale,
        adapter=None,
    ).numpy()
    assert np.abs(theirs - plain).max() > 0.02  # the adapter shows, in both


@pytest.mark.slow
def test_sizes_other_than_the_trained_one(sampler: OnnxSampler) -> None:
    images = sampler.sample(PROMPTS[:1], [0], steps=1, height=32, width=96)
    assert images.shape == (1, 3, 32, 96)
    assert np.isfinite(images).all()
    with pytest.raises(InvalidInput, match="multiple of"):
        sampler.sample(PROMPTS[:1], [0], steps=1, height=33)


@pytest.mark.slow
def test_what_runs_is_said_and_other_concepts_are_refused(sampler: OnnxSampler) -> None:
    assert sampler.providers == ["CPUExecutionProvider"]
    with pytest.raises(InvalidInput, match="this export knows <striped_star>"):
        sampler.sample(["a <dog> dog"], [0], steps=1)


@pytest.mark.slow
def test_weights_lie_outside_the_graph_and_are_checked(exported: Path) -> None:
    data = exported / "transformer.onnx.data"
    graph = onnx.load(exported / "transformer.onnx", load_external_data=False).graph
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > 1024]
    assert large
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in large)
    content = data.read_bytes()
    try:
        data.write_bytes(content[:-1])
        with pytest.raises(IntegrityError, match="transformer.onnx.data"):
            OnnxSampler(exported)
    finally:
        data.write_bytes(content)


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    ours = euler_sigmas({"num_train_timesteps": 1000, "shift": shift}, steps)
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), atol=1e-6)
