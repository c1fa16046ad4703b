"""The exported folder in diffusers itself: with the loader our picture, by LoRA alone another one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import PeftModel

from components.backbones import sampling
from components.backbones.sd3 import SD3Backbone
from components.export.diffusers_folder import export_diffusers
from components.files import verify_manifest

PROMPTS = ["a <striped_star> star on the left", "<striped_star> beside a red circle", "a red circle"]


@pytest.fixture
def exported(adapter: Path, backbone: SD3Backbone, tmp_path: Path) -> Path:
    base = {
        "settings": backbone.settings.model_dump(mode="json"),
        "fingerprint": backbone.fingerprint,
        "sampling": {"steps": 2, "guidance_scale": 4.0},
    }
    return export_diffusers(adapter, tmp_path / "out", base, class_word="star")


def loader(folder: Path) -> Any:
    """The file that travels with the folder, imported from there."""
    spec = importlib.util.spec_from_file_location("load_concept", folder / "load_concept.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_concept


def draw(pipe: Any, backbone: SD3Backbone, prompts: list[str], scale: float = 4.0) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        prompts,
        latents=sampling.noise(list(range(len(prompts))), backbone.latent_shape),
        num_inference_steps=2,
        guidance_scale=scale,
        height=64,
        width=64,
        max_sequence_length=20,
        output_type="pt",
    ).images
    return images.numpy() * 2 - 1


def ours(backbone: SD3Backbone, prompts: list[str], scale: float = 4.0) -> np.ndarray:
    return backbone.sample(
        backbone.encode_text(prompts),
        backbone.encode_text([""]),
        seeds=list(range(len(prompts))),
        steps=2,
        guidance_scale=scale,
        adapter="striped_star",
    ).numpy()


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_the_loader_gives_our_picture(exported: Path, backbone: SD3Backbone, micro_family: Path, scale: float) -> None:
    verify_manifest(exported)
    pipe = StableDiffusion3Pipeline.from_pretrained(micro_family)
    assert loader(exported)(pipe, exported) == "striped_star"
    np.testing.assert_allclose(draw(pipe, backbone, PROMPTS, scale), ours(backbone, PROMPTS, scale), atol=2e-5)


@pytest.mark.parametrize("way", ["diffusers", "peft"])
def test_lora_alone_acts_and_is_not_the_whole_concept(
    exported: Path, backbone: SD3Backbone, micro_family: Path, way: str
) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(micro_family)
    prompts = [prompt.replace("<striped_star>", "sks") for prompt in PROMPTS]
    base = draw(pipe, backbone, prompts)
    if way == "diffusers":
        pipe.load_lora_weights(exported, weight_name="pytorch_lora_weights.safetensors")
    else:
        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, exported)
    with torch.no_grad():
        alone = draw(pipe, backbone, prompts)
    whole = ours(backbone, PROMPTS)
    assert np.abs(alone - base).max() > 0.02
    assert np.abs(alone - whole)[:2].max() > 0.02  # the embeddings are missing where the concept is named
    np.testing.assert_allclose(alone[2], whole[2], atol=2e-5)  # and only there
