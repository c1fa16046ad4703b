"""The influence of a block against a forward pass written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components.backbones import block_influence as module
from components.backbones.block_influence import block_influence, choose
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput


@torch.no_grad()
def test_a_block_alone_reads_the_other_text(backbone: SD3Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMES", (0.6,))
    a, b = "a red star", "a blue heart"
    got = block_influence(backbone, [(a, b)], seeds=[3])
    text, other, null = (backbone.encode_text([prompt]) for prompt in (a, b, ""))
    x_0 = backbone.sample_latents(text, null, seeds=[3], steps=12, guidance_scale=4.0, adapter=None)
    noise = torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(3 + 2**20))
    x, t = 0.4 * x_0 + 0.6 * noise, torch.tensor([0.6])
    transformer = backbone.transformer

    def passes(first: Tensor, exchanged: dict[int, Tensor], own: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Hidden states through all blocks; `own` gives the contexts that are read where nothing is exchanged."""
        hidden = transformer.pos_embed(x)
        temb = transformer.time_text_embed(t * 1000, text.pooled_BP)
        context, seen = transformer.context_embedder(first), []
        for number, block in enumerate(transformer.transformer_blocks):
            read = exchanged.get(number, context if own is None else own[number])
            seen.append(read)
            context, hidden = block.forward(hidden, read, temb)
        return transformer.proj_out(transformer.norm_out(hidden, temb)), seen

    v_a, own = passes(text.context_BLD, {}, None)
    v_b, theirs = passes(other.context_BLD, {}, None)
    towards = (v_b - v_a).double()
    for block in range(len(own)):
        moved = (passes(text.context_BLD, {block: theirs[block]}, own)[0] - v_a).double()
        assert got[block] == pytest.approx(float((moved * towards).sum() / (towards**2).sum()), rel=1e-3, abs=1e-5)
    assert len(set(got)) == len(got)


def test_texts_that_mean_the_same_are_refused(backbone: SD3Backbone) -> None:
    with pytest.raises(InvalidInput, match="mean the same"):
        block_influence(backbone, [("a star", "a star")], seeds=[0])


def test_the_choice_goes_by_the_share_of_each() -> None:
    content, style = [4.0, 1.0, 1.0, 2.0], [0.1, 0.1, 0.7, 0.1]
    assert choose(content, style, 1) == ((0,), (2,))
    assert choose(content, style, 2) == ((0, 3), (1, 2))
    with pytest.raises(InvalidInput, match="3 blocks of each kind"):
        choose(content, style, 3)
