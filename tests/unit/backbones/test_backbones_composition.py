"""Several concepts in one image, against the velocities and matrices written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from components.backbones.composition import HOWS, compose, differences_of, fuse
from components.backbones.lora import layers_of
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.settings import LoraSettings

PROMPT = "a <star> star and a <heart> heart"


@pytest.fixture
def two(backbone: SD3Backbone) -> SD3Backbone:
    """Two adapters of different rank and alpha, with LoRA and embeddings."""
    random = torch.Generator().manual_seed(3)
    for name, lora in (("star", LoraSettings(rank=2, alpha=4.0)), ("heart", LoraSettings(rank=3, alpha=3.0))):
        values = torch.randn(backbone.adapted.embedding_shape, generator=random)
        backbone.create_adapter(name, concept=name, lora=lora, embeddings_NRD=values, seed=len(name))
        for key, value in backbone.parameters(name)["lora"].items():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.1, generator=random)
    return backbone


def draw(backbone: SD3Backbone, adapter: str | None, *, steps: int = 12, prompt: str = PROMPT) -> Tensor:
    text, null = backbone.encode_text([prompt]), backbone.encode_text([""])
    return backbone.sample_latents(text, null, seeds=[1], steps=steps, guidance_scale=3.0, adapter=adapter)


def euler(backbone: SD3Backbone, velocity: object, steps: int) -> Tensor:
    """Sampling written out: x <- x + (sigma' - sigma) (v_null + g (v_text - v_null))."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(backbone._scheduler)
    scheduler.set_timesteps(steps)
    text, null = backbone.encode_text([PROMPT]), backbone.encode_text([""])
    x = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        t = scheduler.sigmas[step].reshape(1)
        v_null, v_text = (velocity(step, x, t, each) for each in (null, text))  # type: ignore[operator]
        x = x + (scheduler.sigmas[step + 1] - scheduler.sigmas[step]) * (v_null + 3.0 * (v_text - v_null))
    return x


@torch.no_grad()
def test_switch_takes_turns_of_five_steps(two: SD3Backbone) -> None:
    compose(two, "both", ["star", "heart"], "switch")
    turns = ["star"] * 5 + ["heart"] * 5 + ["star"] * 2
    expected = euler(two, lambda step, x, t, text: two.velocity(x, t, text, turns[step]), 12)
    torch.testing.assert_close(draw(two, "both"), expected, rtol=1e-3, atol=1e-4)
    assert (draw(two, "star") - expected).abs().max() > 1e-3


@torch.no_grad()
def test_composite_is_the_mean_of_the_guided_predictions(two: SD3Backbone) -> None:
    compose(two, "both", ["star", "heart"], "composite")

    def mean(step: int, x: Tensor, t: Tensor, text: object) -> Tensor:
        return (two.velocity(x, t, text, "star") + two.velocity(x, t, text, "heart")) / 2  # type: ignore[arg-type]

    torch.testing.assert_close(draw(two, "both", steps=4), euler(two, mean, 4), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_merge_is_the_base_with_both_loras_folded_in(two: SD3Backbone) -> None:
    compose(two, "both", ["star", "heart"], "merge", scales=[1.0, 0.5])
    x, t = torch.randn(1, *two.latent_shape, generator=torch.Generator().manual_seed(2)), torch.tensor([0.4])
    text = two.encode_text([PROMPT])
    got = two.velocity(x, t, text, "both")
    names = {"star": (1.0, 4.0 / 2), "heart": (0.5, 3.0 / 3)}
    before = {}
    for name, layer in layers_of(two.transformer, "star").items():
        weight = layer.get_base_layer().weight
        before[name] = weight.clone()
        for adapter, (scale, factor) in names.items():
            lora = two.parameters(adapter)["lora"]
            weight += scale * factor * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
    for name in names:  # their embeddings stay, their LoRA is in the base now
        two.create_adapter(
            f"{name}-words", concept=f"{name}-words", embeddings_NRD=two.parameters(name)["embeddings"]["Y_NRD"]
        )
    words = two.encode_text([PROMPT.replace("<star>", "<star-words>").replace("<heart>", "<heart-words>")])
    expected = two.velocity(x, t, words, "star-words")
    for name, value in before.items():
        layers_of(two.transformer, "star")[name].get_base_layer().weight.copy_(value)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (got - two.velocity(x, t, text, "star")).abs().max() > 1e-3


def test_a_single_adapter_scaled_by_one_is_itself(two: SD3Backbone) -> None:
    compose(two, "whole", ["star"], "merge", scales=[1.0])
    compose(two, "none", ["star"], "merge", scales=[0.0])
    prompt = "a [V] star"
    torch.testing.assert_close(
        draw(two, "whole", prompt=prompt), draw(two, "star", prompt=prompt), rtol=1e-3, atol=1e-4
    )
    with torch.no_grad():
        x, t, text = torch.zeros(1, *two.latent_shape), torch.tensor([0.4]), two.encode_text(["a star"])
        torch.testing.assert_close(two.velocity(x, t, text, "none"), two.velocity(x, t, text, None))


def test_fusion_solves_the_least_squares_problem() -> None:
    """Against numpy's least squares on the stacked problem, ridge rows included."""
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(6, 40)), 3 * random.normal(size=(6, 9))]
    each = [random.normal(size=(4, 6)), random.normal(size=(4, 6))]
    total = sum(x @ x.T for x in inputs)
    ridge = 1e-4 * np.diag(total).mean()
    left = np.concatenate([*(x.T for x in inputs), np.sqrt(ridge) * np.eye(6)])
    right = np.concatenate(
        [*((d @ x).T for d, x in zip(each, inputs, strict=True)), np.sqrt(ridge) * (each[0] + each[1]).T]
    )
    expected, *_ = np.linalg.lstsq(left, right, rcond=None)
    got = fuse([torch.tensor(d) for d in each], [torch.tensor(x @ x.T) for x in inputs])
    np.testing.assert_allclose(got.numpy(), expected.T, rtol=1e-6, atol=1e-9)


def test_fusion_keeps_each_concept_where_inputs_do_not_overlap() -> None:
    first, second = torch.zeros(4, 4), torch.zeros(4, 4)
    first[:2, :2], second[2:, 2:] = torch.eye(2), torch.eye(2)
    differences = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    fused = fuse(differences, [first, second])
    torch.testing.assert_close(fused[:, :2], differences[0][:, :2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fused[:, 2:], differences[1][:, 2:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fuse(differences, [0 * first, 0 * first]), differences[0] + differences[1])


def test_fused_layers_do_for_each_concept_what_its_own_adapter_does_better_than_the_sum(two: SD3Backbone) -> None:
    for how in ("merge", "fusion"):
        compose(two, how, ["star", "heart"], how)  # type: ignore[arg-type]
    together = two.encode_text(["<star>", "<heart>"])
    x = torch.randn(2, *two.latent_shape, generator=torch.Generator().manual_seed(5))
    errors = {}
    with torch.no_grad():
        own = torch.cat(
            [
                two.velocity(x[i : i + 1], torch.tensor([0.5]), together.select([i]), n)
                for i, n in enumerate(("star", "heart"))
            ]
        )
        for how in ("merge", "fusion"):
            errors[how] = (two.velocity(x, torch.tensor([0.5, 0.5]), together, how) - own).norm()
    assert errors["fusion"] < 0.9 * errors["merge"]


@pytest.mark.parametrize("how", HOWS)
def test_every_composition_is_deterministic_named_and_removable(two: SD3Backbone, how: str) -> None:
    names = two.adapted.names
    compose(two, "both", ["star", "heart"], how)  # type: ignore[arg-type]
    first = draw(two, "both", steps=6)
    with pytest.raises(InvalidInput, match=r"\[V\] names no concept"):
        draw(two, "both", steps=1, prompt="a [V] star")
    with pytest.raises(ValueError, match="exists"):
        compose(two, "both", ["star", "heart"], how)  # type: ignore[arg-type]
    two.remove_adapter("both")
    assert two.adapted.names == names
    compose(two, "both", ["star", "heart"], how)  # type: ignore[arg-type]
    assert torch.equal(draw(two, "both", steps=6), first)
    assert (first - draw(two, None, steps=6)).abs().max() > 1e-3
    for adapter in ("star", "heart"):
        assert (first - draw(two, adapter, steps=6)).abs().max() > 1e-4, "both LoRA act"


def test_embeddings_alone_act_by_their_names(backbone: SD3Backbone) -> None:
    random = torch.Generator().manual_seed(0)
    for name in ("star", "heart"):
        values = torch.randn(backbone.adapted.embedding_shape, generator=random)
        backbone.create_adapter(name, concept=name, embeddings_NRD=values)
    compose(backbone, "both", ["star", "heart"])
    torch.testing.assert_close(draw(backbone, "both", steps=3), draw(backbone, "heart", steps=3))


def test_what_cannot_be_composed_is_refused(two: SD3Backbone) -> None:
    with pytest.raises(InvalidInput, match="no adapter 'ring'"):
        compose(two, "both", ["star", "ring"])
    for adapters, how, scales in (([], "merge", None), (["star"], "switch", [1.0]), (["star"], "merge", [1.0, 2.0])):
        with pytest.raises(ValueError, match="to "):
            compose(two, "both", adapters, how, scales=scales)  # type: ignore[arg-type]
    assert differences_of(two, "star").keys() == {f"{name}.weight" for name in layers_of(two.transformer, "star")}
