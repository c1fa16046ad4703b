"""Which blocks of an MM-DiT carry content and which carry style: the sweep that B-LoRA needs on a new architecture.

B-LoRA (Frenkel et al. 2024, arXiv 2403.14572) gives one block of SDXL another prompt than the rest and looks at the
image. The same here, measured on the velocity: with texts a and b that differ in content (or in style) alone, block l
alone reads the context that it would have under b, and its influence is how far that moves the prediction towards b's.

Shape suffixes as in `components.backbones.interface`; N transformer blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from components.backbones import sampling
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput

TIMES = (0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def block_influence(backbone: SD3Backbone, pairs: Sequence[tuple[str, str]], *, seeds: Sequence[int]) -> list[float]:
    """Influence of each block: mean of <v_l - v_a, v_b - v_a> / ||v_b - v_a||^2 over pairs, seeds and times.

    v_l is the prediction under a where block l alone reads b. What the base draws of a at that noise is not known, so
    the predictions are made at noised images that it has drawn of a.

    Raises:
        InvalidInput: the two texts of a pair mean the same to the base.
    """
    totals = torch.zeros(len(backbone.transformer.transformer_blocks), dtype=torch.float64)
    for pair in pairs:
        texts = backbone.encode_text(pair)
        a, b = (texts.select([which] * len(seeds)) for which in (0, 1))
        b = type(b)(b.context_BLD, a.pooled_BP, b.concept_rows)  # the pooled vector belongs to no block
        x_0_BCHW = backbone.sample_latents(
            a, backbone.encode_text([""]), seeds=seeds, steps=12, guidance_scale=4.0, adapter=None
        )
        x_1_BCHW = sampling.noise([seed + 2**20 for seed in seeds], backbone.latent_shape).to(backbone.device)
        for time in TIMES:
            x_BCHW, t_B = (1 - time) * x_0_BCHW + time * x_1_BCHW, torch.full((len(seeds),), time).to(x_0_BCHW)
            contexts: list[list[Tensor]] = [[], []]
            velocities = []
            for text, context in zip((a, b), contexts, strict=True):
                with _contexts(backbone.transformer, record=context):
                    velocities.append(backbone.velocity(x_BCHW, t_B, text, None))
            towards = (velocities[1] - velocities[0]).double()
            if not towards.any():
                raise InvalidInput(f"{pair[0]!r} and {pair[1]!r} mean the same to the base", field="pairs")
            for number in range(len(totals)):
                read = [other if block == number else own for block, (own, other) in enumerate(zip(*contexts))]
                with _contexts(backbone.transformer, read=read):
                    moved = (backbone.velocity(x_BCHW, t_B, a, None) - velocities[0]).double()
                totals[number] += float((moved * towards).sum() / towards.square().sum())
    influences: list[float] = (totals / (len(pairs) * len(TIMES))).tolist()
    return influences


def choose(content: Sequence[float], style: Sequence[float], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The `count` blocks that lean most to content, and as many that lean most to style, by the share of each.

    Raises:
        InvalidInput: there are not so many blocks.
    """
    if not 1 <= count <= len(content) // 2:
        raise InvalidInput(f"{count} blocks of each kind, this base has {len(content)} in all", field="count")
    leaning = [one / sum(content) - other / sum(style) for one, other in zip(content, style, strict=True)]
    order = sorted(range(len(leaning)), key=lambda block: (-leaning[block], block))
    return tuple(sorted(order[:count])), tuple(sorted(order[-count:]))


@contextmanager
def _contexts(transformer: Any, *, record: list[Tensor] | None = None, read: Sequence[Tensor] = ()) -> Iterator[None]:
    """Within, each block's context input is added to `record`, or is the one of `read`."""

    def hook(number: int) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if record is not None:
                record.append(kwargs["encoder_hidden_states"])
                return None
            return args, {**kwargs, "encoder_hidden_states": read[number]}

        return before

    handles = [
        block.register_forward_pre_hook(hook(number), with_kwargs=True)
        for number, block in enumerate(transformer.transformer_blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
