"""A model that has some concepts already, as the base of the next: both ways against weights added by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from components.backbones.composition import Earlier, on_top_of
from components.backbones.lora import layers_of
from components.backbones.sd3 import SD3Backbone
from components.settings import BaseSettings, LoraSettings

HOWS: tuple[Earlier, ...] = ("fold", "stack")


def load(family: Path) -> SD3Backbone:
    return SD3Backbone.load(
        BaseSettings(path=str(family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")
    )


def add(backbone: SD3Backbone, name: str, seed: int) -> None:
    backbone.create_adapter(name, concept=name, lora=LoraSettings(rank=2, alpha=3.0), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in backbone.parameters(name)["lora"].values():
        parameter.data = torch.randn(parameter.shape, generator=random) * 0.1


def velocity(backbone: SD3Backbone, adapter: str | None) -> Tensor:
    text = backbone.encode_text(["a star on the left"])
    x_BCHW = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.velocity(x_BCHW, torch.tensor([0.4]), text, adapter)


@pytest.fixture
def backbone(micro_family: Path) -> SD3Backbone:
    loaded = load(micro_family)
    for seed, name in enumerate(("first", "second", "third")):
        add(loaded, name, seed)
    return loaded


@pytest.fixture
def by_hand(micro_family: Path, backbone: SD3Backbone) -> SD3Backbone:
    """A base whose own weights are those of `backbone` plus the first two adapters' B A alpha / r."""
    changed = load(micro_family)
    for name in ("first", "second"):
        for path, layer in layers_of(backbone.transformer, name).items():
            difference = layer.lora_B[name].weight @ layer.lora_A[name].weight * (3.0 / 2)
            changed.transformer.get_submodule(path).weight.data += difference.detach()
    add(changed, "third", 2)
    return changed


@pytest.mark.parametrize("how", HOWS)
def test_the_base_and_a_further_adapter_stand_on_the_earlier_ones(
    backbone: SD3Backbone, by_hand: SD3Backbone, how: Earlier
) -> None:
    pristine, third = velocity(backbone, None), velocity(backbone, "third")
    with on_top_of(backbone, ["first", "second"], how):
        for adapter in (None, "third"):
            torch.testing.assert_close(velocity(backbone, adapter), velocity(by_hand, adapter), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(velocity(backbone, None), pristine, atol=1e-3)
    assert torch.equal(velocity(backbone, None), pristine)  # to the last bit
    assert torch.equal(velocity(backbone, "third"), third)


@pytest.mark.parametrize("how", HOWS)
def test_the_earlier_ones_get_no_gradient_and_checkpointing_changes_none(backbone: SD3Backbone, how: Earlier) -> None:
    gradients = []
    text = backbone.encode_text(["a star"])
    x_BCHW = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(1))
    for checkpointing in (False, True):
        parameters = backbone.parameters("third")["lora"]
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        backbone.adapted.use_gradient_checkpointing(checkpointing)
        with on_top_of(backbone, ["first", "second"], how):
            backbone.velocity(x_BCHW, torch.tensor([0.5]), text, "third").square().sum().backward()
        gradients.append([parameter.grad for parameter in parameters.values()])
        for name in ("first", "second"):
            assert all(parameter.grad is None for parameter in backbone.parameters(name)["lora"].values())
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-5)
