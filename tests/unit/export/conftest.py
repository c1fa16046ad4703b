"""An untrained base with one adapter that changes the pictures visibly, and its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.backbones.sd3 import SD3Backbone
from components.files import atomic_folder
from components.settings import BaseSettings, LoraSettings

CONCEPT = "striped_star"


def save_adapter(backbone: SD3Backbone, folder: Path, *, seed: int = 0, rank: int = 2, concept: str = CONCEPT) -> Path:
    """A random adapter, as a folder; the backbone is left without it."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(backbone.adapted.embedding_shape, generator=random)
    lora = LoraSettings(rank=rank, alpha=3.0 * rank)
    backbone.create_adapter("maker", concept=concept, lora=lora, embeddings_NRD=values, seed=seed)
    for key, value in backbone.parameters("maker")["lora"].items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1, generator=random)
    with atomic_folder(folder) as partial:
        backbone.save_adapter("maker", partial)
    backbone.remove_adapter("maker")
    return folder


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """Makes adapter folders."""
    return save_adapter


@pytest.fixture(scope="session")
def base_settings(micro_family: Path) -> BaseSettings:
    return BaseSettings(path=str(micro_family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")


@pytest.fixture(scope="module")
def backbone(base_settings: BaseSettings, tmp_path_factory: pytest.TempPathFactory) -> SD3Backbone:
    """With one adapter loaded under its concept's name; tests leave it as it is."""
    loaded = SD3Backbone.load(base_settings)
    loaded.load_adapter(save_adapter(loaded, tmp_path_factory.mktemp("made") / "adapter"), CONCEPT)
    return loaded


@pytest.fixture(scope="module")
def adapter(base_settings: BaseSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter's folder."""
    return save_adapter(SD3Backbone.load(base_settings), tmp_path_factory.mktemp("folder") / "adapter")
