"""Layer-wise concept embeddings against a forward pass written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.settings import LoraSettings

# one mention, none, two mentions at other places, a named concept beside the active one
PROMPTS = ["a [V] star on the left", "heart", "a red star and a [V] ring and [V] circle", "a <other> star, [V] heart"]


def embeddings(backbone: SD3Backbone, seed: int) -> Tensor:
    return torch.randn(backbone.adapted.embedding_shape, generator=torch.Generator().manual_seed(seed))


def point(backbone: SD3Backbone, count: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, *backbone.latent_shape, generator=random), torch.linspace(0.1, 0.9, count)


def by_hand(transformer: Any, x: Tensor, t: Tensor, text: TextEncoding, replaced: list[dict[int, Tensor]]) -> Tensor:
    """SD3's forward pass, block by block; `replaced[i]` maps a context row of sample i to its (N, D) embeddings."""
    height, width = x.shape[-2:]
    hidden = transformer.pos_embed(x)
    temb = transformer.time_text_embed(t * 1000, text.pooled_BP)
    context = transformer.context_embedder(text.context_BLD)
    for number, block in enumerate(transformer.transformer_blocks):
        rows = []
        for sample, changes in enumerate(replaced):
            lines = [
                changes[row][number] if row in changes and number < len(changes[row]) else line
                for row, line in enumerate(context[sample])
            ]
            rows.append(torch.stack(lines))
        context, hidden = block.forward(hidden, torch.stack(rows), temb)
    hidden = transformer.proj_out(transformer.norm_out(hidden, temb))
    p, channels = transformer.config.patch_size, transformer.out_channels
    patches = hidden.reshape(len(x), height // p, width // p, p, p, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(x), channels, height, width)


def replacements(backbone: SD3Backbone, adapters: dict[str, Tensor]) -> list[dict[int, Tensor]]:
    """Row -> embeddings for PROMPTS, from the token positions themselves: CLIP row 0, T5 row 1."""
    word = backbone.tokenizer.clip("sks", add_special_tokens=False).input_ids[0]
    order: list[list[str]] = [[""], [], ["", ""], ["other", ""]]
    found = []
    ids = backbone.tokenizer([p.replace("<other>", "[V]") for p in PROMPTS]).clip_BN.tolist()
    for line, names in zip(ids, order, strict=True):
        changes = {}
        for name, place in zip(names, [i for i, token in enumerate(line) if token == word], strict=True):
            changes[place] = adapters[name][:, 0]
            changes[backbone.tokenizer.clip_length + place - 1] = adapters[name][:, 1]  # T5 has no start token
        found.append(changes)
    return found


def test_replacement_equals_the_forward_pass_by_hand(backbone: SD3Backbone) -> None:
    ours, other = embeddings(backbone, 1), embeddings(backbone, 2)
    backbone.create_adapter("active", concept="mine", embeddings_NRD=ours)
    backbone.create_adapter("second", concept="other", embeddings_NRD=other)
    text = backbone.encode_text(PROMPTS)
    x, t = point(backbone, len(PROMPTS))
    with torch.no_grad():
        expected = by_hand(backbone.transformer, x, t, text, replacements(backbone, {"": ours, "other": other}))
        got = backbone.velocity(x, t, text, "active")
        base = backbone.velocity(x, t, text, None)
        plain = by_hand(backbone.transformer, x, t, text, [{} for _ in PROMPTS])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(base, plain, rtol=1e-4, atol=1e-5)
    changed = (got - base).abs().flatten(1).amax(1)
    assert changed[1] == 0, "a prompt without a concept is the base exactly"
    assert (changed[[0, 2, 3]] > 1e-3).all()


@pytest.mark.parametrize("single", [("active",), ("second",), ("active", "second")])
def test_a_single_embedding_acts_at_the_first_block_only(backbone: SD3Backbone, single: tuple[str, ...]) -> None:
    """Later blocks see what becomes of it; beside one with an embedding for each block it takes nothing from it."""
    values = {name: embeddings(backbone, seed) for name, seed in (("active", 1), ("second", 2))}
    for name in single:
        values[name] = values[name][:1]
    backbone.create_adapter("active", concept="mine", embeddings_NRD=values["active"])
    backbone.create_adapter("second", concept="other", embeddings_NRD=values["second"])
    text = backbone.encode_text(PROMPTS)
    x, t = point(backbone, len(PROMPTS))
    with torch.no_grad():
        replaced = replacements(backbone, {"": values["active"], "other": values["second"]})
        expected = by_hand(backbone.transformer, x, t, text, replaced)
        got = backbone.velocity(x, t, text, "active")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_every_block_and_every_row_has_its_own_embedding(backbone: SD3Backbone) -> None:
    initial = embeddings(backbone, 1)
    backbone.create_adapter("a", concept="c", embeddings_NRD=initial)
    text = backbone.encode_text(["a [V] star"])
    x, t = point(backbone, 1)
    (value,) = backbone.parameters("a")["embeddings"].values()
    value.requires_grad_(True)
    backbone.velocity(x, t, text, "a").square().sum().backward()
    gradient = value.grad
    assert gradient is not None
    assert (gradient.abs().amax(-1) > 0).all(), "each of the N x R rows has a gradient of its own"
    assert not any(parameter.grad is not None for parameter in backbone.transformer.parameters())


def test_gradients_against_finite_differences(backbone: SD3Backbone) -> None:
    backbone.create_adapter("a", concept="c", embeddings_NRD=embeddings(backbone, 1))
    text = backbone.encode_text(["a [V] star and [V] ring", "heart"])
    x, t = point(backbone, 2)
    (value,) = backbone.parameters("a")["embeddings"].values()
    transformer = backbone.transformer.double()
    try:
        value.data = value.data.double()
        exact = TextEncoding(text.context_BLD.double(), text.pooled_BP.double(), text.concept_rows)
        value.requires_grad_(True)

        def loss() -> Tensor:
            return backbone.velocity(x.double(), t.double(), exact, "a").square().mean()

        loss().backward()
        random = torch.Generator().manual_seed(3)
        for _ in range(4):
            direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
            with torch.no_grad():
                origin, step = value.clone(), 1e-3
                value.copy_(origin + step * direction)
                above = float(loss())
                value.copy_(origin - step * direction)
                below = float(loss())
                value.copy_(origin)
            assert value.grad is not None
            # diffusers computes RMS norms in float32 whatever the model's dtype: that bounds the agreement
            assert float((value.grad * direction).sum()) == pytest.approx((above - below) / (2 * step), rel=1e-3)
    finally:
        transformer.float()


def test_gradient_checkpointing_gives_the_same_gradients_whatever_acts_later(backbone: SD3Backbone) -> None:
    """Blocks are recomputed in the backward pass under the adapter of their forward pass, not the one in use since."""
    text = backbone.encode_text(["a [V] star", "heart"])
    x, t = point(backbone, 2)
    for name, seed in (("a", 1), ("b", 2)):
        backbone.create_adapter(
            name, concept=name, lora=LoraSettings(), embeddings_NRD=embeddings(backbone, seed), seed=seed
        )
        for value in backbone.parameters(name)["lora"].values():
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(seed))
    mine = {k: v for kind in backbone.parameters("a").values() for k, v in kind.items()}
    for value in mine.values():
        value.requires_grad_(True)

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        backbone.adapted.use_gradient_checkpointing(checkpointing)
        loss = backbone.velocity(x, t, text, "a").square().mean()
        with torch.no_grad():
            backbone.velocity(x, t, text, "b")
        loss.backward()
        found = {key: value.grad.clone() for key, value in mine.items() if value.grad is not None}
        for value in mine.values():
            value.grad = None
        return found

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys() == mine.keys()
    for key, gradient in plain.items():
        assert torch.equal(recomputed[key], gradient), key


def test_start_is_close_to_the_base(backbone: SD3Backbone) -> None:
    """Embeddings start as the mean rows of the placeholder word: block 0 gets what the base gets, up to the mean."""
    prompts = ["a [V] star on the left", "a [V] star on the right"]
    text = backbone.encode_text(prompts)
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    measured = backbone.measure_context_rows(text, latents, times=(0.3, 0.7), seed=4)
    context = backbone.transformer.context_embedder(text.context_BLD)
    rows = [text.concept_rows[i][""] for i in range(2)]
    for index in range(2):
        torch.testing.assert_close(
            measured[0, index], (context[0, rows[0][index]] + context[1, rows[1][index]]).detach() / 2
        )
    # in one prompt, at one t, replacing the rows by themselves is the base
    one, latent = text.select([0]), latents[:1]
    itself = backbone.measure_context_rows(one, latent, times=(0.5,), seed=4)
    backbone.create_adapter("itself", concept="c", embeddings_NRD=itself)
    from components.backbones.sampling import noise

    x, t = 0.5 * latent + 0.5 * noise([4], backbone.latent_shape), torch.tensor([0.5])
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.velocity(x, t, one, "itself"), backbone.velocity(x, t, one, None), rtol=1e-4, atol=1e-5
        )


def test_naming_a_concept_that_is_not_loaded(backbone: SD3Backbone) -> None:
    backbone.create_adapter("a", concept="mine", embeddings_NRD=embeddings(backbone, 1))
    x, t = point(backbone, 1)
    text = backbone.encode_text(["a <stranger> star"])
    with pytest.raises(InvalidInput, match="0 loaded adapters know the concept <stranger>"):
        backbone.velocity(x, t, text, "a")
    backbone.velocity(x, t, text, None)
    for name in ("b", "c"):
        backbone.create_adapter(name, concept="stranger", embeddings_NRD=embeddings(backbone, 2))
    with pytest.raises(InvalidInput, match="2 loaded adapters know"):
        backbone.velocity(x, t, text, "a")
    backbone.velocity(x, t, text, "b")  # of two versions the active one is meant


def test_own_name_and_placeholder_mean_the_same(backbone: SD3Backbone) -> None:
    backbone.create_adapter("a", concept="mine", embeddings_NRD=embeddings(backbone, 1))
    x, t = point(backbone, 1)
    named, active = (backbone.encode_text([prompt]) for prompt in ("a <mine> star", "a [V] star"))
    with torch.no_grad():
        assert torch.equal(backbone.velocity(x, t, named, "a"), backbone.velocity(x, t, active, "a"))


def test_under_guidance_the_null_half_is_the_bases(backbone: SD3Backbone) -> None:
    backbone.create_adapter("a", concept="mine", embeddings_NRD=embeddings(backbone, 1))
    both = TextEncoding.cat([backbone.encode_text([""]), backbone.encode_text(["a [V] star"])])
    x, t = point(backbone, 2)
    with torch.no_grad():
        changed = (backbone.velocity(x, t, both, "a") - backbone.velocity(x, t, both, None)).abs().flatten(1).amax(1)
    assert changed[0] == 0
    assert changed[1] > 1e-3
