"""Stable Diffusion 3.5 Medium's architecture with random weights, and the bench of `training` on random encodings."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sd35
import torch
from measuring import Clock, interleaved
from training import PLAIN, STAGE_1, WITH_DOP, Bench

from components.backbones.device import device_of
from components.backbones.flops import tokens_of, work_of
from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.files import write_json
from components.learning.cache import ConditionedBatch
from components.settings import BaseSettings, Profile, load_profile
from components.world import family

REPOSITORY = Path(__file__).resolve().parents[2]
FROZEN, DETACHED, TRAINABLE = "stage 2, frozen", "stage 2, detached", "stage 2, trainable"
CASES = (PLAIN, STAGE_1, FROZEN, DETACHED, TRAINABLE, WITH_DOP)


@dataclass(frozen=True)
class Size:
    """What the miniature changes and nothing else."""

    transformer: dict[str, Any]
    autoencoder: dict[str, Any]
    overrides: tuple[str, ...]
    matrix: int  # side of the matrices that the card's rate is measured with
    rounds: int


FULL = Size(sd35.TRANSFORMER, sd35.AUTOENCODER, (), 8192, 5)
SMALL = Size(
    sd35.SHRUNKEN,
    sd35.AUTOENCODER | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    ("base.device=cpu", "base.dtype=float32", "learning.mixed_precision='no'", "evaluation.sampling.steps=2"),
    128,
    2,
)


def create(folder: Path, size: Size, settings: BaseSettings) -> None:
    """Write a base folder with random weights; it has no text encoders, since nothing here encodes a text."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, settings.dtype))
    try:
        with torch.device(device_of(settings)):  # initialising two billion weights takes a minute on a CPU
            torch.manual_seed(0)
            SD3Transformer2DModel(**size.transformer).save_pretrained(folder / "transformer")
            AutoencoderKL(**size.autoencoder).save_pretrained(folder / "vae")
    finally:
        torch.set_default_dtype(before)
    FlowMatchEulerDiscreteScheduler(shift=sd35.SHIFT).save_pretrained(folder / "scheduler")
    for part, tokenizer in (
        ("tokenizer", family.clip_tokenizer()),
        ("tokenizer_2", family.clip_tokenizer(pad_token="!")),
        ("tokenizer_3", family.t5_tokenizer()),
    ):
        tokenizer.save_pretrained(folder / part)
    write_json(folder / "model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]})


class RandomBench(Bench):
    """The bench of `training` on random encodings: no text encoder, no image."""

    def __post_init__(self) -> None:
        self.backbone = SD3Backbone(Path(self.profile.base.path), self.profile.base)
        self.size = self.profile.learning.batch_size

    def encoding(self, size: int, *, mentions: bool) -> TextEncoding:
        config, backbone = self.backbone.transformer.config, self.backbone
        made = {"device": backbone.device, "dtype": getattr(torch, self.profile.base.dtype)}
        rows = sd35.CLIP_ROWS + sd35.T5_ROWS
        first = sd35.CLIP_ROWS + 2
        t5_tokens = backbone.tokenizer.rows_per_mention - 1
        where = {"": (3, *range(first, first + t5_tokens))} if mentions else {}
        return TextEncoding(
            torch.randn(size, rows, config.joint_attention_dim, **made),
            torch.randn(size, config.pooled_projection_dim, **made),
            (where,) * size,
        )

    def batch(self) -> ConditionedBatch:
        with_concept, without = self.encoding(self.size, mentions=True), self.encoding(self.size, mentions=False)
        return ConditionedBatch(
            x_0_BCHW=torch.randn(self.size, *self.backbone.latent_shape, device=self.backbone.device),
            complete=with_concept,
            base=without,
            target=with_concept,
            class_text=without,
            null=without,
        )


def tera_flop(bench: Bench, case: str) -> float:
    """Model FLOPs of a step over the whole batch, / 10^12 (see `components.backbones.flops`)."""
    config, rank = bench.backbone.transformer.config, bench.profile.learning.lora.rank
    _, height, width = bench.backbone.latent_shape
    tokens = {
        "image_tokens": tokens_of(config, height, width),
        "context_tokens": sd35.CLIP_ROWS + sd35.T5_ROWS,
    }
    base, plain = work_of(config, **tokens), work_of(config, **tokens, rank=rank)
    learned = work_of(config, **tokens, rank=rank, embeddings=True)
    passes = {
        PLAIN: plain.step,
        STAGE_1: learned.step,
        FROZEN: 2 * plain.forward + base.forward + learned.step,
        DETACHED: 3 * plain.forward + learned.step,
        TRAINABLE: 2 * plain.forward + 2 * learned.step,
        WITH_DOP: 2 * plain.forward + base.forward + 2 * learned.step,
    }
    return bench.size * passes[case] / 1e12


def matrix_rate(size: Size, settings: BaseSettings, now: Clock) -> float:
    """Operations a second of a large matrix product in the base's precision, the median of several."""
    device, dtype = device_of(settings), getattr(torch, settings.dtype)
    a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=dtype) for _ in range(2))
    repeats = 10

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    seconds = interleaved({"mm": products}, 10, now, warm_up=3)["mm"]
    return repeats * 2 * size.matrix**3 / statistics.median(seconds)


def profile_of(folder: Path, size: Size, resolution: int, batch: int) -> Profile:
    return load_profile(
        str(REPOSITORY / "profiles" / "sd35-medium.yaml"),
        [*size.overrides, f"base.path={folder}", f"base.resolution={resolution}", f"learning.batch_size={batch}"],
    )


def parameters_of(folder: Path) -> int:
    """Of the transformer, from the headers of its files."""
    from safetensors import safe_open

    total = 0
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                count = 1
                for side in opened.get_slice(name).get_shape():
                    count *= side
                total += count if not name.startswith("pos_embed.pos_embed") else 0
    return total
