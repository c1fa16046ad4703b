"""LoRA by name: what it adapts, its seed, and the switch."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from components.backbones import lora
from components.backbones.composition import differences_of
from components.backbones.sd3 import SD3Backbone
from components.backbones.weights import base_weights
from components.errors import InvalidInput
from components.settings import LoraSettings


def point(backbone: SD3Backbone, count: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, *backbone.latent_shape, generator=random), torch.full((count,), 0.6)


def add(backbone: SD3Backbone, name: str, *, seed: int = 0, scale: float = 0.1) -> None:
    backbone.create_adapter(name, concept=name, lora=LoraSettings(rank=2, alpha=4.0), seed=seed)
    random = torch.Generator().manual_seed(seed + 1)
    for key, value in backbone.parameters(name)["lora"].items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=scale, generator=random)


def test_targets_of_sd35_medium() -> None:
    """24 blocks, dual attention in blocks 0 to 12: 24 x 8 + 13 x 4 projections, less the last block's to_add_out."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            caption_projection_dim=1536,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    expected = lora.expected_modules(transformer)
    assert len(expected) == 24 * 8 + 13 * 4 - 1
    modules = dict(transformer.named_modules())
    assert all(isinstance(modules[name], torch.nn.Linear) for name in expected)
    # every projection of every attention, found without the list of names
    found = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and (".attn." in name or ".attn2." in name)
    }
    assert found == expected


def test_both_attentions_are_adapted_in_every_block(backbone: SD3Backbone) -> None:
    add(backbone, "a")
    adapted = set(lora.layers_of(backbone.transformer, "a"))
    assert adapted == lora.expected_modules(backbone.transformer)
    assert "transformer_blocks.0.attn2.to_q" in adapted
    assert "transformer_blocks.2.attn2.to_q" not in adapted, "block 2 of the micro family has no second attention"
    assert "transformer_blocks.2.attn.to_add_out" not in adapted, "the last block drops its context"


def test_another_architecture_is_refused(backbone: SD3Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "TARGETS", ("attn.to_q",))
    with pytest.raises(RuntimeError, match="do not match"):
        lora.add_lora(backbone.transformer, "partial", LoraSettings(rank=2, alpha=2.0), seed=0)
    lora.remove_lora(backbone.transformer, "partial")


def test_initialisation_is_the_seeds_and_changes_nothing(backbone: SD3Backbone) -> None:
    state = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        backbone.create_adapter(name, concept="x", lora=LoraSettings(), seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    a, b, c = (backbone.parameters(name)["lora"] for name in "abc")
    down = [key for key in a if "lora_A" in key]
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(not torch.equal(a[key], c[key]) for key in down)
    assert all(not value.any() for key, value in a.items() if "lora_B" in key)
    for key in down:
        bound = a[key].shape[1] ** -0.5
        assert 0.7 * bound < float(a[key].abs().max()) <= bound
    x, t = point(backbone)
    text = backbone.encode_text(["heart", "a red star"])
    with torch.no_grad():
        assert torch.equal(backbone.velocity(x, t, text, "a"), backbone.velocity(x, t, text, None))


def test_none_is_the_base_exactly(backbone: SD3Backbone) -> None:
    x, t = point(backbone)
    text = backbone.encode_text(["a [V] star", "heart"])
    with torch.no_grad():
        before = backbone.velocity(x, t, text, None)
        add(backbone, "a")
        add(backbone, "b", seed=5)
        a, b = backbone.velocity(x, t, text, "a"), backbone.velocity(x, t, text, "b")
        assert torch.equal(backbone.velocity(x, t, text, None), before)
        assert torch.equal(backbone.velocity(x, t, text, "a"), a), "after the base and another one"
        backbone.remove_adapter("b")
        assert torch.equal(backbone.velocity(x, t, text, "a"), a), "after another one is gone"
        backbone.remove_adapter("a")
        assert torch.equal(backbone.velocity(x, t, text, None), before)
    assert min(float((v - before).abs().max()) for v in (a, b)) > 1e-3
    assert float((a - b).abs().max()) > 1e-3


def test_lora_is_the_formula(backbone: SD3Backbone) -> None:
    """W x + (alpha / rank) B A x in each adapted module and nothing else: fold it into the base and compare."""
    x, t = point(backbone)
    text = backbone.encode_text(["a [V] star", "heart"])
    add(backbone, "a")
    with torch.no_grad():
        expected = backbone.velocity(x, t, text, "a")
        weights = backbone.parameters("a")["lora"]
        layers = lora.layers_of(backbone.transformer, "a")
        originals = {}
        try:
            for name, layer in layers.items():
                base = layer.get_base_layer().weight
                originals[name] = base.clone()
                base += (4.0 / 2) * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
            folded = backbone.velocity(x, t, text, None)
        finally:
            for name, value in originals.items():
                layers[name].get_base_layer().weight.copy_(value)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def test_switching_leaves_requires_grad_alone(backbone: SD3Backbone) -> None:
    add(backbone, "a")
    for value in backbone.parameters("a")["lora"].values():
        value.requires_grad_(True)
    add(backbone, "b", seed=3)
    x, t = point(backbone)
    text = backbone.encode_text(["a [V] star", "heart"])

    def training() -> set[str]:
        return {name for name, value in backbone.transformer.named_parameters() if value.requires_grad}

    expected = {name for name, _ in backbone.transformer.named_parameters() if ".a.weight" in name}
    assert training() == expected
    assert expected
    with torch.no_grad():
        backbone.velocity(x, t, text, "b")
        backbone.velocity(x, t, text, None)
    backbone.velocity(x, t, text, "a").square().mean().backward()
    assert training() == expected
    grown = {name for name, value in backbone.transformer.named_parameters() if value.grad is not None}
    assert grown == expected
    backbone.transformer.zero_grad(set_to_none=True)


def test_no_adapter_acts_outside_of_a_call(backbone: SD3Backbone) -> None:
    """Whoever uses the transformer itself gets the base, also after a failed call."""
    x, t = point(backbone)
    text = backbone.encode_text(["a [V] star", "heart"])
    arguments = {
        "hidden_states": x,
        "timestep": t * 1000,
        "encoder_hidden_states": text.context_BLD,
        "pooled_projections": text.pooled_BP,
    }
    with torch.no_grad():
        base = backbone.velocity(x, t, text, None)
        add(backbone, "a")
        assert torch.equal(backbone.transformer(**arguments).sample, base)
        with pytest.raises(RuntimeError):
            backbone.velocity(x[:, :1], t, text, "a")
        assert torch.equal(backbone.transformer(**arguments).sample, base)


def test_unknown_adapter(backbone: SD3Backbone) -> None:
    x, t = point(backbone)
    with pytest.raises(InvalidInput, match="no adapter 'nobody'"):
        backbone.velocity(x, t, backbone.encode_text(["heart", "ring"]), "nobody")


def test_a_scaled_lora_acts_as_one_with_scaled_weights(backbone: SD3Backbone) -> None:
    x, t = point(backbone)
    text = backbone.encode_text(["a star", "snow background"])
    add(backbone, "a")
    trained, base = backbone.velocity(x, t, text, "a"), backbone.velocity(x, t, text, None)
    backbone.scale_adapter("a", 0.25)
    scaled = backbone.velocity(x, t, text, "a")
    backbone.scale_adapter("a", 0.0)
    assert torch.equal(backbone.velocity(x, t, text, "a"), base)
    backbone.scale_adapter("a", 1.0)
    assert torch.equal(backbone.velocity(x, t, text, "a"), trained)
    add(backbone, "b", scale=0.025)  # the same numbers, a quarter of the size
    torch.testing.assert_close(backbone.velocity(x, t, text, "b"), scaled, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(scaled, trained, atol=1e-4)


def test_scaled_weight_differences_act_as_smaller_ones(backbone: SD3Backbone) -> None:
    x, t = point(backbone)
    text = backbone.encode_text(["a star", "snow background"])
    name, weight = next((n, w) for n, w in base_weights(backbone.transformer).items() if "to_k.weight" in n)
    difference = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.1
    backbone.create_adapter("w", concept="w", weights={name: difference})
    backbone.create_adapter("quarter", concept="quarter", weights={name: 0.25 * difference})
    trained, base = backbone.velocity(x, t, text, "w"), backbone.velocity(x, t, text, None)
    assert not torch.allclose(trained, base, atol=1e-4)
    backbone.scale_adapter("w", 0.25)
    assert torch.equal(backbone.velocity(x, t, text, "w"), backbone.velocity(x, t, text, "quarter"))
    assert torch.equal(differences_of(backbone, "w")[name], 0.25 * difference)
    backbone.scale_adapter("w", 0.0)
    assert torch.equal(backbone.velocity(x, t, text, "w"), base)
    backbone.scale_adapter("w", 1.0)
    assert torch.equal(backbone.velocity(x, t, text, "w"), trained)


def test_embeddings_alone_cannot_be_scaled(backbone: SD3Backbone) -> None:
    blocks, rows, width = backbone.adapted.embedding_shape
    backbone.create_adapter("e", concept="e", lora=None, embeddings_NRD=torch.ones(blocks, rows, width), seed=0)
    with pytest.raises(InvalidInput, match="no LoRA and no weight"):
        backbone.scale_adapter("e", 0.5)
