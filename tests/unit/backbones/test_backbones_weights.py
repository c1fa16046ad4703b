"""Weight differences: W + difference while the adapter acts, trainable, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.backbones.weights import base_weights
from components.errors import InvalidInput
from components.files import atomic_folder, write_manifest
from components.settings import BaseSettings, LoraSettings

TEXTS = ["a [V] star on the left", "heart"]
SOME = ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.attn.add_k_proj.bias", "pos_embed.proj.weight")


def point(backbone: SD3Backbone) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, *backbone.latent_shape, generator=random), torch.tensor([0.3, 0.8])


def differences(backbone: SD3Backbone, seed: int = 1) -> dict[str, Tensor]:
    random, shapes = torch.Generator().manual_seed(seed), base_weights(backbone.transformer)
    return {name: 0.1 * torch.randn(shapes[name].shape, generator=random) for name in SOME}


def folded(backbone: SD3Backbone, added: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The velocity of a base whose own weights were changed."""
    weights = base_weights(backbone.transformer)
    before = {name: weights[name].detach().clone() for name in added}
    with torch.no_grad():
        for name, value in added.items():
            weights[name] += value
        v = backbone.velocity(x, t, backbone.encode_text(TEXTS), None)
        for name, value in before.items():
            weights[name].copy_(value)
    return v


@pytest.mark.parametrize("beside_lora", [False, True])
def test_it_is_the_base_with_other_weights(backbone: SD3Backbone, beside_lora: bool) -> None:
    """Also where LoRA layers of another adapter stand around the base's."""
    x, t = point(backbone)
    text = backbone.encode_text(TEXTS)
    expected = folded(backbone, differences(backbone), x, t)
    if beside_lora:
        backbone.create_adapter("other", concept="c", lora=LoraSettings())
    base = backbone.velocity(x, t, text, None)
    backbone.create_adapter("full", concept="c", weights=differences(backbone))
    assert torch.equal(backbone.velocity(x, t, text, "full"), expected)
    assert (expected - base).abs().max() > 1e-3
    assert torch.equal(backbone.velocity(x, t, text, None), base), "the base is what it was"
    with pytest.raises(RuntimeError):
        backbone.velocity(x[:, :1], t, text, "full")
    assert torch.equal(backbone.velocity(x, t, text, None), base), "also after a failure"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_weights(backbone: SD3Backbone, checkpointing: bool) -> None:
    x, t = point(backbone)
    text = backbone.encode_text(TEXTS)
    weights = base_weights(backbone.transformer)
    for name in SOME:
        weights[name].requires_grad_(True)
    backbone.velocity(x, t, text, None).square().mean().backward()
    expected = {name: weights[name].grad for name in SOME}
    for name in SOME:
        weights[name].requires_grad_(False)
        weights[name].grad = None

    backbone.create_adapter("full", concept="c", weights={name: torch.zeros_like(weights[name]) for name in SOME})
    trained = backbone.parameters("full")["weights"]
    assert tuple(trained) == SOME
    for value in trained.values():
        value.requires_grad_(True)
    backbone.adapted.use_gradient_checkpointing(checkpointing)
    loss = backbone.velocity(x, t, text, "full").square().mean()
    with torch.no_grad():
        backbone.velocity(x, t, text, None)  # another adapter acts between the passes
    loss.backward()
    for name, value in trained.items():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-7)
    assert all(value.grad is None for value in base_weights(backbone.transformer).values())


def test_loading_restores_them_exactly(backbone: SD3Backbone, base_settings: BaseSettings, tmp_path: Path) -> None:
    x, t = point(backbone)
    text = backbone.encode_text(TEXTS)
    backbone.create_adapter("full", concept="star", weights=differences(backbone))
    expected = backbone.velocity(x, t, text, "full")
    with atomic_folder(tmp_path / "adapter") as folder:
        backbone.save_adapter("full", folder)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"concept_embeddings.safetensors", "weight_differences.safetensors", "SHA256SUMS"}
    fresh = SD3Backbone.load(base_settings)
    fresh.load_adapter(tmp_path / "adapter", "champion")
    assert torch.equal(fresh.velocity(x, t, text, "champion"), expected)
    assert fresh.adapted["champion"].concept == "star"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("nowhere.weight", torch.zeros(2), r"1 weight differences do not fit this base: nowhere.weight is \(2,\)"),
        (SOME[0], torch.ones(3, 3), r"to_q.weight is \(3, 3\), not \(16, 16\)"),
        (SOME[1], torch.full((16,), float("nan")), "not finite"),
        (SOME[1], torch.zeros(16), "no effect"),
    ],
)
def test_what_does_not_fit_is_refused(
    backbone: SD3Backbone, tmp_path: Path, name: str, value: Tensor, problem: str
) -> None:
    backbone.create_adapter("full", concept="c", weights={SOME[1]: torch.ones(16)})
    with atomic_folder(tmp_path / "adapter") as folder:
        backbone.save_adapter("full", folder)
    backbone.remove_adapter("full")
    file = tmp_path / "adapter" / "weight_differences.safetensors"
    assert list(load_file(file)) == [SOME[1]]
    save_file({name: value}, file)
    write_manifest(file.parent)
    with pytest.raises(InvalidInput, match=problem) as error:
        backbone.load_adapter(file.parent, "x")
    assert str(file.parent) in str(error.value.file)
    assert backbone.adapted.names == ()


def test_a_small_difference_is_not_rounded_away_in_bfloat16(base_settings: BaseSettings) -> None:
    """What trains is the float32 difference; many small steps add up though each alone is below bfloat16's grid."""
    backbone = SD3Backbone.load(base_settings.model_copy(update={"dtype": "bfloat16"}))
    weight = base_weights(backbone.transformer)[SOME[0]]
    backbone.create_adapter("full", concept="c", weights={SOME[0]: torch.zeros(weight.shape)})
    difference = backbone.parameters("full")["weights"][SOME[0]]
    assert difference.dtype == torch.float32
    with torch.no_grad():
        for _ in range(1000):
            difference += 1e-4
    with backbone.adapted._weights.adding({SOME[0]: difference}):
        held = backbone.adapted._weights.held[SOME[0]]
    torch.testing.assert_close(held.float(), weight.float() + 0.1, rtol=1e-2, atol=1e-3)
