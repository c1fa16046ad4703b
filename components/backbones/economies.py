"""Other ways to compute the same training: recomputed blocks, compiled blocks, a base in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from components.backbones.adapted import AdaptedTransformer
from components.backbones.quantization import int8_weights
from components.errors import InvalidInput

_VARIANTS = 128
"""Compiled variants of a block's code at most: per kind of block, adapter, batch, and with or without gradient."""


@contextmanager
def compiled(adapted: AdaptedTransformer, *, backend: str = "inductor") -> Iterator[None]:
    """Within, the blocks' forward passes are compiled; hooks and switches stay outside: adapters go on changing."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(_VARIANTS, limit)
    blocks = list(adapted.transformer.transformer_blocks)
    try:
        for block in blocks:
            block.forward = torch.compile(block.forward, backend=backend)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
        torch._dynamo.config.recompile_limit = limit


@contextmanager
def recomputed(adapted: AdaptedTransformer) -> Iterator[None]:
    """Within, blocks are computed again in the backward pass."""
    adapted.use_gradient_checkpointing(True)
    try:
        yield
    finally:
        adapted.use_gradient_checkpointing(False)


@contextmanager
def economies(
    adapted: AdaptedTransformer, *, checkpointing: bool = False, compile_: bool = False, int8: bool = False
) -> Iterator[None]:
    """Within, a training computes as the settings of these names say.

    Raises:
        InvalidInput: int8 weights are asked for where others act in their place, or torchao is not installed.
    """
    if int8 and adapted.folds:
        raise InvalidInput(
            "concepts that are folded into the base's weights cannot act on a quantised base",
            field="learning.quantize_base",
            mend="leave it out, or set continual.earlier=stack",
        )
    with (
        int8_weights(adapted.transformer) if int8 else nullcontext(),
        recomputed(adapted) if checkpointing else nullcontext(),
        compiled(adapted) if compile_ else nullcontext(),
    ):
        yield
