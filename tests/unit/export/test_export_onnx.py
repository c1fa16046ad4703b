"""ONNX: every shape that consumers use, against torch; and the sampler's arithmetic against diffusers'."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from components.backbones.sd3 import SD3Backbone
from components.backbones.weights import base_weights
from components.errors import IntegrityError, InvalidInput
from components.export import onnx_adapters
from components.export.onnx_adapters import export_onnx_adapter
from components.export.onnx_folder import FACTS, TRANSFORMER, export_onnx
from components.export.onnx_sampler import OnnxSampler, euler_sigmas
from components.files import atomic_folder, write_manifest

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


@pytest.fixture(scope="module")
def adaptable(backbone: SD3Backbone, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base alone, for adapters that are put in at run time; what both exports write is taken from the other one."""

    def copied(_: SD3Backbone, folder: Path) -> None:
        own = shutil.ignore_patterns(f"{TRANSFORMER}*", FACTS, "SHA256SUMS")
        shutil.copytree(exported, folder, ignore=own, dirs_exist_ok=True)

    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    out = tmp_path_factory.mktemp("onnx-base") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_adapters, "write_shared", copied)
        onnx_adapters.export_onnx_base(backbone, out, {"steps": 3, "guidance_scale": 4.0})
    after = backbone.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    return out


@pytest.mark.slow
@pytest.mark.long  # a second export of a whole transformer
def test_adapters_at_run_time_equal_the_folded_graph_and_torch(
    backbone: SD3Backbone,
    sampler: OnnxSampler,
    adaptable: Path,
    adapter: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    one_base = OnnxSampler(adaptable, ["CPUExecutionProvider"])
    other = make_adapter(backbone, tmp_path / "other", seed=1, rank=3, concept="dog")
    for folder, name in ((adapter, "striped_star"), (other, "dog")):
        assert one_base.load_adapter(export_onnx_adapter(folder, tmp_path / f"{name}-onnx")) == name
    seeds = [0, 1, 2]
    found = one_base.sample(PROMPTS, seeds, adapter="striped_star")
    assert np.abs(found - sampler.sample(PROMPTS, seeds)).max() < 1e-4
    assert np.abs(found - by_torch(backbone, PROMPTS, seeds, 4.0)).max() < 1e-3
    # another concept, of another rank, on the same session; nothing of the first is left
    backbone.load_adapter(other, "dog")
    try:
        dog = backbone.sample(
            backbone.encode_text(["a <dog> dog"]),
            backbone.encode_text([""]),
            seeds=[5],
            steps=3,
            guidance_scale=4.0,
            adapter="dog",
        ).numpy()
    finally:
        backbone.remove_adapter("dog")
    assert np.abs(one_base.sample(["a <dog> dog"], [5], adapter="dog") - dog).max() < 1e-3
    np.testing.assert_array_equal(one_base.sample(PROMPTS, seeds, adapter="striped_star"), found)
    # without an adapter it is the base
    plain = backbone.sample(
        backbone.encode_text(["a red circle"]),
        backbone.encode_text([""]),
        seeds=[1],
        steps=3,
        guidance_scale=4.0,
        adapter=None,
    ).numpy()
    alone = one_base.sample(["a red circle"], [1])
    assert np.abs(alone - plain).max() < 1e-3 < 0.02 < np.abs(alone[0] - found[1]).max()
    for prompt, named in (("a <dog> dog", "striped_star"), ("a <star> star", None)):
        with pytest.raises(InvalidInput, match="is not known"):
            one_base.sample([prompt], [0], adapter=named)
    with pytest.raises(InvalidInput, match="loaded adapters: striped_star, dog"):
        one_base.sample(["a cat"], [0], adapter="cat")


@pytest.mark.slow
@pytest.mark.long
def test_an_adapter_that_does_not_fit_is_refused(
    sampler: OnnxSampler, adaptable: Path, adapter: Path, backbone: SD3Backbone, tmp_path: Path
) -> None:
    one_base = OnnxSampler(adaptable, ["CPUExecutionProvider"])
    written = export_onnx_adapter(adapter, tmp_path / "written")
    with pytest.raises(InvalidInput, match="<striped_star> is folded into these graphs"):
        sampler.load_adapter(written)
    foreign = json.loads((written / "purecc_onnx.json").read_text()) | {"base_fingerprint": "0" * 64}
    (written / "purecc_onnx.json").write_text(json.dumps(foreign))
    with pytest.raises(IntegrityError, match="purecc_onnx.json"):
        one_base.load_adapter(written)
    write_manifest(written)
    with pytest.raises(InvalidInput, match="made for the base 000000000000"):
        one_base.load_adapter(written)
    name = "transformer_blocks.0.attn.to_q.weight"
    changed = torch.ones_like(base_weights(backbone.transformer)[name])
    backbone.create_adapter("fine", concept="dog", lora=None, embeddings_NRD=None, weights={name: changed})
    with atomic_folder(tmp_path / "fine") as partial:
        backbone.save_adapter("fine", partial)
    backbone.remove_adapter("fine")
    with pytest.raises(InvalidInput, match="LoraAdapter knows only LoRA"):
        export_onnx_adapter(tmp_path / "fine", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    ours = euler_sigmas({"num_train_timesteps": 1000, "shift": shift}, steps)
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), atol=1e-6)
