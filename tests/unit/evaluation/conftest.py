"""Untrained evaluators, and a backbone that only colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from once import made_once
from PIL import Image
from torch import Tensor
from untrained_evaluators import save_clip, save_dinov2, save_sam, save_segformer, save_style_encoder, save_vit

from components.backbones.interface import TextEncoding
from components.concepts.concept import Concept, Reference
from components.concepts.texts import derive_texts
from components.evaluation.pictures import Picture

SIDE = 32


def _seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


@dataclass
class ColouringBackbone:
    """The image is low-frequency noise of the seed plus a colour of the prompt; an adapter shifts the colour.

    `[V]` in a prompt without an adapter, or an adapter on a prompt without `[V]`, changes nothing.
    """

    fingerprint: str = "base-1"
    latent_shape: tuple[int, int, int] = (4, 4, 4)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: list[tuple[str | None, tuple[str, ...]]] = field(default_factory=list)
    fail_after: int | None = None
    scale: float = 1.0
    _prompts: dict[int, str] = field(default_factory=dict)

    def scale_adapter(self, name: str, factor: float) -> None:
        self.scale = factor

    def encode_text(self, prompts: Sequence[str]) -> TextEncoding:
        numbers = []
        for prompt in prompts:
            number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:3], "big")
            self._prompts[number] = prompt
            numbers.append(number)
        context = torch.tensor(numbers, dtype=torch.float64)[:, None, None]
        return TextEncoding(context, torch.zeros(len(prompts), 1), tuple({} for _ in prompts))

    def sample(
        self,
        text: TextEncoding,
        negative: TextEncoding,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        adapter: str | None,
    ) -> Tensor:
        assert len(text) == len(negative) == len(seeds)
        prompts = [self._prompts[int(row)] for row in text.context_BLD[:, 0, 0]]
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append((adapter, tuple(prompts)))
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            plain = prompt.replace("[V] ", "").replace(", in [V] style", "")
            colour = torch.rand(3, 1, 1, generator=_seeded(plain)) * 2 - 1
            if adapter is not None and "[V]" in prompt:
                colour = colour + self.scale * torch.tensor([0.6, -0.3, 0.2])[:, None, None]
            noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            noise = torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic")[0]
            images.append((0.6 * colour + 0.4 * noise).clamp(-1, 1))
        return torch.stack(images)


@pytest.fixture
def backbone() -> ColouringBackbone:
    return ColouringBackbone()


def noise_pictures(count: int, seed: int, side: int = SIDE) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
        for _ in range(count)
    ]


@pytest.fixture
def pictures() -> list[Picture]:
    return noise_pictures(6, 0)


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    folder = tmp_path / "data" / "striped_star"
    folder.mkdir(parents=True)
    references = []
    for index, picture in enumerate(noise_pictures(3, 1)):
        path = folder / f"{index:02d}.png"
        Image.fromarray(picture).save(path)
        text = "a [V] star on the left, brick background"
        references.append(Reference(path, text, derive_texts(text, kind="instance", class_word="star")))
    return Concept("striped_star", "instance", "star", "CC0-1.0", "made for a test", folder, tuple(references))


@pytest.fixture(scope="session")
def evaluator_models(session_folder: Path) -> Path:
    """A folder with `clip`, `dino`, `vit`, `csd`, `segmenter` and `sam`, randomly initialised."""

    def make(folder: Path) -> None:
        for name, save in (
            ("clip", save_clip),
            ("dino", save_dinov2),
            ("vit", save_vit),
            ("csd", save_style_encoder),
            ("segmenter", save_segformer),
            ("sam", save_sam),
        ):
            save(folder / name)

    return made_once(session_folder / "evaluators", make)
