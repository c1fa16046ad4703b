"""An untrained base, loaded once per module; tests leave no adapter behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.backbones.sd3 import SD3Backbone
from components.settings import BaseSettings


@pytest.fixture(scope="session")
def base_settings(micro_family: Path) -> BaseSettings:
    return BaseSettings(path=str(micro_family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")


@pytest.fixture(scope="module")
def shared_backbone(base_settings: BaseSettings) -> SD3Backbone:
    return SD3Backbone.load(base_settings)


@pytest.fixture
def backbone(shared_backbone: SD3Backbone) -> Iterator[SD3Backbone]:
    yield shared_backbone
    for name in list(shared_backbone.adapted.names):
        shared_backbone.remove_adapter(name)
    shared_backbone.adapted.use_gradient_checkpointing(False)
