"""Adapters that take each other's place, and several concepts on one base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.files import atomic_folder
from components.serving.requests import ImageRequest, read_request
from components.serving.service import ImageService
from components.settings import BaseSettings, LoraSettings, SamplingSettings


@pytest.fixture(scope="module")
def backbone(micro_family: Path) -> SD3Backbone:
    settings = BaseSettings(
        path=str(micro_family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks"
    )
    return SD3Backbone.load(settings)


@pytest.fixture
def service(backbone: SD3Backbone) -> ImageService:
    for name in list(backbone.adapted.names):
        backbone.remove_adapter(name)
    return ImageService(backbone, SamplingSettings(steps=2, guidance_scale=4.0))


def save(backbone: SD3Backbone, folder: Path, seed: int, *, concept: str = "star", rank: int = 2) -> Path:
    values = torch.randn(backbone.adapted.embedding_shape, generator=torch.Generator().manual_seed(seed))
    lora = LoraSettings(rank=rank, alpha=2.0)
    backbone.create_adapter("maker", concept=concept, lora=lora, embeddings_NRD=values, seed=seed)
    for key, value in backbone.parameters("maker")["lora"].items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.2, generator=torch.Generator().manual_seed(seed))
    with atomic_folder(folder) as partial:
        backbone.save_adapter("maker", partial)
    backbone.remove_adapter("maker")
    return folder


ASKED = ImageRequest(prompt="a <star> star on the left", seed=5)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_replaced_adapter_draws_as_one_freshly_loaded(service: ImageService, tmp_path: Path, rank: int) -> None:
    first = save(service.backbone, tmp_path / "1", 1)
    second = save(service.backbone, tmp_path / "2", 2, rank=rank)
    service.add("star", first)
    old = service.draw(ASKED).png
    layers = [id(module) for module in service.backbone.transformer.modules()]
    service.add("star", second)
    new = service.draw(ASKED).png
    if rank == 2:
        assert [id(module) for module in service.backbone.transformer.modules()] == layers  # in place
    service.backbone.remove_adapter("star")
    service.backbone.load_adapter(second, "star")
    assert service.draw(ASKED).png == new != old


@pytest.mark.parametrize("rank", [2, 3])
def test_a_replacement_that_fails_leaves_what_was_there(service: ImageService, tmp_path: Path, rank: int) -> None:
    service.add("star", save(service.backbone, tmp_path / "1", 1))
    before = service.draw(ASKED).png
    broken = save(service.backbone, tmp_path / "2", 2, rank=rank)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(Exception, match="adapter_model"):
        service.add("star", broken)
    assert service.draw(ASKED).png == before
    assert service.backbone.adapted.names == ("star",)


def test_prompts_pick_adapters_and_the_least_used_goes(backbone: SD3Backbone, tmp_path: Path) -> None:
    from contextlib import nullcontext

    for name in list(backbone.adapted.names):
        backbone.remove_adapter(name)
    folders = {name: save(backbone, tmp_path / name, n, concept=name) for n, name in enumerate(("star", "dog", "ink"))}
    service = ImageService(backbone, SamplingSettings(steps=1), lambda concept: nullcontext(folders[concept]), keep=2)
    first = service.draw(ASKED).png
    service.draw(ImageRequest(prompt="a <dog> dog"))
    service.draw(ImageRequest(prompt="a <ink> sky"))
    assert service.concepts == ("dog", "ink") == backbone.adapted.names
    assert service.draw(ASKED).png == first  # loaded again, the same
    assert service.draw(ASKED, original=True).png != first


def test_gaps_in_a_table_mean_the_default_and_mistakes_are_named() -> None:
    assert read_request({"prompt": "a", "seed": float("nan"), "steps": 3.0}) == ImageRequest(prompt="a", steps=3)
    with pytest.raises(InvalidInput, match=r"row 2: seed.*1\.5"):
        read_request({"prompt": "a", "seed": 1.5}, "row 2")
    with pytest.raises(InvalidInput, match="known fields"):
        read_request({"prompt": "a", "sede": 1})
