"""A family from a seed, in miniature; and the shipped one: it loads everywhere and draws what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, CLIPModel, CLIPProcessor

from components.backbones.sd3 import SD3Backbone
from components.world.oracle import Oracle
from components.world.pretraining.describe import base_settings, describe
from components.world.pretraining.quality import (
    accuracy,
    oracle_quality,
    oracle_scenes,
    prompt_families,
    sample_prompts,
)
from components.world.pretraining.recipe import RECIPES
from components.world.pretraining.stages import PARTS, assemble, make_part

MODELS = Path(__file__).parents[3] / "infra" / "models"
BASE, EVALUATORS = MODELS / "tiny", MODELS / "tiny-evaluators"


def test_a_family_is_made_measured_and_described(tmp_path: Path) -> None:
    recipe, work = RECIPES["micro"], tmp_path / "work"
    for part in PARTS:
        make_part(part, recipe, work=work, seed=0)
    base, evaluators = tmp_path / "base", tmp_path / "evaluators"
    assemble(work, base, evaluators)
    quality = describe(base, evaluators, work=work, recipe=recipe, seed=0)
    assert set(quality) == {"single object", "named look", "short", "class word", "named style"}
    assert set(quality["single object"]) == {"background", "shape", "position", "colour", "all"}
    assert not [file for file in base.rglob("*.json") if str(work) in file.read_text(encoding="utf-8")]
    card = (base / "README.md").read_text()
    assert "samples.png" in card
    assert "curves.png" in card
    assert (base / "curves.png").stat().st_size > 1000
    assert StableDiffusion3Pipeline.from_pretrained(base).transformer.dtype == torch.float32


def test_the_shipped_family_is_small_and_holds_safetensors_only() -> None:
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 48 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".jinja", ".md", ".png", ""}


def test_no_shipped_file_names_the_folder_that_it_was_made_in() -> None:
    assert not [file for file in MODELS.rglob("*.json") if "_name_or_path" in file.read_text(encoding="utf-8")]


def test_the_shipped_pipeline_draws_with_diffusers_alone() -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(BASE)
    pipeline.set_progress_bar_config(disable=True)
    prompt, oracle = "a red star on the left, snow background", Oracle.load(EVALUATORS / "oracle")
    for length in (20, 256):  # our own length, and the pipeline's default
        images = pipeline(
            [prompt] * 4,
            guidance_scale=4.0,
            num_inference_steps=16,
            max_sequence_length=length,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        seen = oracle.predict(images * 2 - 1)
        assert seen["background"].count("snow") >= 3, (length, seen)


def test_the_oracle_knows_what_is_in_held_out_renders() -> None:
    oracle = Oracle.load(EVALUATORS / "oracle")
    result = {name: oracle_quality(oracle, scenes) for name, scenes in oracle_scenes(4000, seed=99).items()}
    plain, styled, clear = result.values()
    for name in ("background", "shape", "position", "size", "colour", "look", "style"):
        assert plain[name] >= 0.99, result
    assert plain["mask_iou"] >= 0.9
    assert min(styled["background"], styled["position"], styled["style"]) >= 0.98, result
    # the rest is what the style hides: where the object is in plain sight it is seen
    assert min(clear[name] for name in ("background", "shape", "position", "size")) >= 0.97, result
    assert clear["shape"] > styled["shape"] + 0.05, result


def test_the_stated_quality_of_the_shipped_base_is_enough() -> None:
    described = json.loads((BASE / "quality.json").read_text())["prompts"]["single object"]
    bounds = {"background": 0.95, "position": 0.95, "colour": 0.95, "shape": 0.85, "all": 0.75}
    assert described.keys() == bounds.keys()
    assert all(described[name] >= bound for name, bound in bounds.items()), described


def test_the_shipped_base_draws_what_prompts_say() -> None:
    stated = json.loads((BASE / "quality.json").read_text())["prompts"]["single object"]
    backbone = SD3Backbone.load(base_settings(BASE, 64))
    family = prompt_families(32, seed=1)[0]
    images = sample_prompts(backbone, family.prompts, seed=10_000)
    measured = accuracy(Oracle.load(EVALUATORS / "oracle"), images, family.asked)
    for name, value in measured.items():  # fresh prompts and seeds; 32 images spread by some percent
        assert value >= stated[name] - 0.15, (name, measured, stated)


@pytest.mark.parametrize("name", ["clip", "dino", "segmenter"])
def test_the_evaluators_load_through_transformers(name: str) -> None:
    folder = EVALUATORS / name
    if name == "clip":
        assert CLIPModel.from_pretrained(folder).config.projection_dim == 128
        assert CLIPProcessor.from_pretrained(folder).tokenizer("a star").input_ids
    else:
        kind = AutoModel if name == "dino" else AutoModelForSemanticSegmentation
        assert kind.from_pretrained(folder).num_parameters() > 10_000
        assert AutoImageProcessor.from_pretrained(folder) is not None
