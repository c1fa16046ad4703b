"""Measure a finished family and write its model card."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL

from components.backbones.sd3 import SD3Backbone
from components.files import write_manifest
from components.settings import BaseSettings
from components.world.family import TEXT_LENGTH
from components.world.oracle import Oracle
from components.world.pretraining.autoencoder import autoencoder_quality
from components.world.pretraining.card import write_card
from components.world.pretraining.quality import base_quality, oracle_quality, oracle_scenes
from components.world.pretraining.recipe import Recipe
from components.world.vocabulary import PLACEHOLDER_WORD


def base_settings(folder: Path, resolution: int) -> BaseSettings:
    """Settings under which the base was trained."""
    return BaseSettings(
        path=str(folder), resolution=resolution, max_sequence_length=TEXT_LENGTH, placeholder=PLACEHOLDER_WORD
    )


def describe(base: Path, evaluators: Path, *, work: Path, recipe: Recipe, seed: int) -> dict[str, dict[str, float]]:
    """Write the card; returns prompt form -> attribute -> accuracy."""
    oracle = Oracle.load(evaluators / "oracle")
    backbone = SD3Backbone.load(base_settings(base, recipe.size.image_side))
    quality, images, prompts = base_quality(backbone, oracle, count=recipe.quality_prompts, seed=seed)
    write_card(
        base,
        work=work,
        recipe=recipe,
        seed=seed,
        quality=quality,
        oracle={
            name: oracle_quality(oracle, scenes)
            for name, scenes in oracle_scenes(count=8 * recipe.quality_prompts, seed=seed).items()
        },
        autoencoder=autoencoder_quality(
            AutoencoderKL.from_pretrained(base / "vae"), count=recipe.quality_prompts, seed=seed
        ),
        images_BCHW=images,
        prompts=prompts,
    )
    write_manifest(base)
    return quality
