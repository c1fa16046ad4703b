"""The AutoencoderKL of the family: reconstruction, weighted towards the objects, with a slight KL term."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from components.world.pretraining.loop import LoopSettings, Objective, train
from components.world.render import Render, render
from components.world.scene import SceneMix, random_scene

MIX = SceneMix(two_objects=0.4, no_object=0.0, named_look=0.3, unnamed_look=0.5, named_style=0.12, unnamed_style=0.12)
OBJECT_WEIGHT = 3.0
KL_WEIGHT = 1e-6


class AutoencoderObjective(Objective):
    """Reconstruct renders of scenes rich in patterns."""

    def __init__(self, autoencoder: AutoencoderKL):
        super().__init__()
        self.autoencoder = autoencoder

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        drawn: Render = render([random_scene(rng, MIX) for _ in range(size)])
        device = self.autoencoder.device
        weight = 1 + (OBJECT_WEIGHT - 1) * drawn.masks_BNHW.sum(1, keepdim=True)
        return {"images": drawn.images_BCHW.to(device), "weight": weight.to(device)}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, weight = batch["images"], batch["weight"]
        posterior = self.autoencoder.encode(images).latent_dist
        difference = self.autoencoder.decode(posterior.sample()).sample.float() - images
        squared = (weight * difference.square()).mean()
        absolute = (weight * difference.abs()).mean()
        kl = posterior.kl().float().mean()
        mean_square = difference.square().mean().detach()
        return {
            "loss": squared + 0.2 * absolute + KL_WEIGHT * kl,
            "psnr": 10 * torch.log10(4 / mean_square),
            "kl": kl.detach(),
        }


def normalise_latents(autoencoder: AutoencoderKL, *, seed: int, count: int = 512) -> None:
    """Set shift_factor and scaling_factor so that latents of the world's scenes have mean 0 and deviation 1."""
    rng = np.random.default_rng((seed, 1))
    with torch.no_grad():
        images = render([random_scene(rng) for _ in range(count)]).images_BCHW.to(autoencoder.device)
        latents = torch.cat([autoencoder.encode(part).latent_dist.mode() for part in images.split(64)]).float()
    autoencoder.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))


def train_autoencoder(autoencoder: AutoencoderKL, settings: LoopSettings, *, folder: Path, seed: int) -> AutoencoderKL:
    """Train in place; a finished training is read back from its checkpoint."""
    objective = train(AutoencoderObjective(autoencoder), settings, folder=folder, seed=seed)
    assert isinstance(objective, AutoencoderObjective)
    normalise_latents(objective.autoencoder, seed=seed)
    return objective.autoencoder


@torch.no_grad()
def autoencoder_quality(autoencoder: AutoencoderKL, *, count: int, seed: int) -> dict[str, float]:
    """PSNR in dB over held-out renders: of whole images, and of the pixels on objects."""
    rng = np.random.default_rng((seed, 19))
    drawn = render([random_scene(rng, MIX) for _ in range(count)])
    inside, whole = torch.zeros(2), torch.zeros(2)
    for images, masks in zip(drawn.images_BCHW.split(64), drawn.masks_BNHW.sum(1, keepdim=True).split(64), strict=True):
        decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        squared = (decoded - images).square()
        whole += torch.stack([squared.sum(), torch.tensor(float(squared.numel()))])
        inside += torch.stack([(squared * masks).sum(), 3 * masks.sum()])
    return {name: float(10 * torch.log10(4 * n / total)) for name, (total, n) in (("image", whole), ("object", inside))}
