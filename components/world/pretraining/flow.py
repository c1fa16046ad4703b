"""The flow transformer, trained together with its three text encoders by conditional flow matching.

Three aids for a small budget, none of which stays in the model: the loss counts more on the objects; a linear head on
the middle block's image tokens predicts the objects' mask (representation alignment, with the truth as the teacher);
latents come from a pool that is rendered and encoded once, with a fresh caption at each visit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.files import atomic_file
from components.world.captions import random_caption
from components.world.family import SHIFT, TEXT_LENGTH
from components.world.pretraining.loop import LoopSettings, Objective, train
from components.world.render import render
from components.world.scene import Scene, random_scene

logger = logging.getLogger(__name__)

MUON_PARAMETERS = ("transformer.transformer_blocks",)


@dataclass(frozen=True)
class FlowSettings:
    """What is particular to the flow.

    Attributes:
        pool: scenes that are encoded once.
        object_weight: of the loss on and around an object (its outline tells the shape), 1 elsewhere.
        alignment_weight: of the mask head's loss.
        long_text: share of steps with 256 rows of T5 context, which is the pipeline's default length.
    """

    pool: int = 65_536
    object_weight: float = 4.0
    alignment_weight: float = 1.5
    long_text: float = 0.03


def pool_scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the pool."""
    return random_scene(np.random.default_rng((seed, 7, index)))


def encode_pool(
    pipeline: StableDiffusion3Pipeline, folder: Path, *, seed: int, start: int, stop: int, chunk: int = 64
) -> None:
    """Render and encode scenes start..stop into one shard; a shard that exists is kept."""
    shard = folder / f"pool-{start:07d}-{stop:07d}.safetensors"
    if shard.is_file():
        return
    latents, masks = [], []
    autoencoder = pipeline.vae
    for first in range(start, stop, chunk):
        drawn = render([pool_scene(seed, index) for index in range(first, min(first + chunk, stop))])
        with torch.inference_mode(), torch.autocast(autoencoder.device.type, torch.bfloat16):
            mode = autoencoder.encode(drawn.images_BCHW.to(autoencoder.device)).latent_dist.mode().float().cpu()
        latents.append(((mode - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor).half())
        coverage = nn.functional.avg_pool2d(drawn.masks_BNHW.sum(1, keepdim=True), 2)
        masks.append((coverage * 255).round().to(torch.uint8))
        if (first - start) // chunk % 100 == 0:
            logger.info("pool: %d of %d scenes", first - start, stop - start)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(shard) as temporary:
        save_file({"latents": torch.cat(latents).contiguous(), "masks": torch.cat(masks).contiguous()}, temporary)


def encode_texts(pipeline: StableDiffusion3Pipeline, texts: Sequence[str], t5_length: int) -> tuple[Tensor, Tensor]:
    """Context (B, L, D) and pooled (B, P) as the pipeline's `encode_prompt` gives them, with gradient."""
    contexts, pooled = [], []
    device = pipeline.transformer.device
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        ids = tokenizer(list(texts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
        output = encoder(ids.input_ids.to(device), output_hidden_states=True)
        contexts.append(output.hidden_states[-2])
        pooled.append(output.text_embeds)
    clip = torch.cat(contexts, -1)
    ids = pipeline.tokenizer_3(
        list(texts), padding="max_length", max_length=t5_length, truncation=True, return_tensors="pt"
    )
    t5 = pipeline.text_encoder_3(ids.input_ids.to(device))[0]
    clip = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return torch.cat([clip, t5.to(clip.dtype)], 1), torch.cat(pooled, -1)


class FlowObjective(Objective):
    """Velocity of the rectified flow at logit-normal, shifted times."""

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, pool: Mapping[str, Tensor], settings: FlowSettings, seed: int
    ):
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoders = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3])
        width = self.transformer.inner_dim
        self.mask_head = nn.Linear(width, 16)
        self._pipeline, self._pool, self._settings, self._seed = [pipeline], pool, settings, seed
        self._tokens: list[Tensor] = []
        middle = self.transformer.transformer_blocks[len(self.transformer.transformer_blocks) // 2 - 1]
        middle.register_forward_hook(lambda _module, _inputs, outputs: self._tokens.append(outputs[1]))

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        indices = rng.integers(self._settings.pool, size=size)
        device = self.transformer.device
        long = np.random.default_rng((self._seed, 11, step)).uniform() < self._settings.long_text
        x_0 = self._pool["latents"][indices].float().to(device)
        normal = torch.randn(size)
        sigma = torch.sigmoid(normal)
        return {
            "x_0": x_0,
            "x_1": torch.randn(x_0.shape).to(device),
            "t": (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).to(device),
            "mask": self._pool["masks"][indices].float().div(255).to(device),
            "texts": [random_caption(pool_scene(self._seed, int(index)), rng) for index in indices],
            "t5_length": 256 if long else TEXT_LENGTH,
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x_0, x_1, t, mask = batch["x_0"], batch["x_1"], batch["t"], batch["mask"]
        context, pooled = encode_texts(self._pipeline[0], batch["texts"], batch["t5_length"])
        time = t.view(-1, 1, 1, 1)
        self._tokens.clear()
        velocity = self.transformer(
            hidden_states=(1 - time) * x_0 + time * x_1,
            timestep=t * 1000,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        squared = (velocity - (x_1 - x_0)).square()
        near = nn.functional.max_pool2d(nn.functional.avg_pool2d(mask, 2), 5, 1, 2)
        weight = 1 + (self._settings.object_weight - 1) * near
        weighted = (weight * squared).mean() / weight.mean()
        tokens = self.mask_head(self._tokens.pop()).float()
        truth = nn.functional.pixel_unshuffle(mask, 4).flatten(2).transpose(1, 2)
        alignment = nn.functional.binary_cross_entropy_with_logits(tokens, truth)
        return {
            "loss": weighted + self._settings.alignment_weight * alignment,
            "flow": squared.mean().detach(),
            "alignment": alignment.detach(),
        }


def train_flow(
    pipeline: StableDiffusion3Pipeline, loop: LoopSettings, settings: FlowSettings, *, folder: Path, seed: int
) -> None:
    """Train the transformer and the text encoders in place; every process encodes its share of the pool first."""
    state = torch.distributed
    rank, world = (state.get_rank(), state.get_world_size()) if state.is_initialized() else (0, 1)
    shard = settings.pool // 8
    shards = [(start, start + shard) for start in range(0, settings.pool, shard)]
    pipeline.vae.to("cuda" if torch.cuda.is_available() else "cpu")
    for start, stop in shards[rank::world]:
        encode_pool(pipeline, folder / "pool", seed=seed, start=start, stop=stop)
    pipeline.vae.to("cpu")  # it has no part in the training
    if state.is_initialized():
        state.barrier()
    parts = [load_file(path) for path in sorted((folder / "pool").glob("pool-*.safetensors"))]
    pool = {name: torch.cat([part[name] for part in parts]) for name in ("latents", "masks")}
    del parts
    train(FlowObjective(pipeline, pool, settings, seed), loop, folder=folder, seed=seed)
