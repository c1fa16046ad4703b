"""How many floating-point operations an MM-DiT needs: counted from its configuration, a multiply-add as two.

Only matrix products count, as is usual for model FLOP utilisation: normalisations, activations and additions are a
fraction of a percent, and what gradient checkpointing computes again is not the model's work.

Shapes, one sample: N image tokens, L context tokens, T = N + L, D inner width, J context width, P pooled width, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TIME_CHANNELS = 256  # of the sinusoidal embedding of t, fixed in diffusers
_FEED_FORWARD = 4  # hidden width of the feed-forward, in D

FORMULA = """\
forward, one sample = 2 N p^2 C D                                   patches
  + 2 (256 D + D^2 + P D + D^2) + 2 L J D                           t, pooled and context embedders
  + sum over blocks of
      2 D^2 (6, with attn2 9) + 2 D^2 (6, in the last block 2)      modulation
    + 8 (N + L) D^2 + 4 T^2 D                                       joint attention (last block: 2 L D^2 less)
    + 8 N D^2 + 4 N^2 D                                             attn2, where the block has it
    + 16 N D^2 + 16 L D^2                                           feed-forward (last block: image only)
    + 4 r D tokens                                                  for each projection with LoRA of rank r
  + 4 D^2 + 2 N D p^2 C                                             output
backward, LoRA training: each product once more for the gradient of its input (none: modulation, embedders, and the
projections that read the input of the first block), attention and LoRA twice, frozen weights never."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one sample.

    Attributes:
        forward: of a forward pass.
        backward: of the backward pass to the LoRA of every attention projection.
    """

    forward: int
    backward: int

    @property
    def step(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def tokens_of(config: Any, latent_height: int, latent_width: int) -> int:
    """N: image tokens of a latent."""
    return (latent_height // config.patch_size) * (latent_width // config.patch_size)


def work_of(config: Any, *, image_tokens: int, context_tokens: int, rank: int = 0, embeddings: bool = False) -> Work:
    """The work of one sample.

    Args:
        config: of an SD3Transformer2DModel.
        rank: of the LoRA that acts on every attention projection; 0: none acts, and nothing is trained.
        embeddings: whether concept embeddings train, too: then the first block's context has a gradient.
    """
    image, context = image_tokens, context_tokens
    both = image + context
    width = config.num_attention_heads * config.attention_head_dim
    square, last = width * width, config.num_layers - 1
    patch = config.patch_size**2
    lora = 4 * rank * width  # per token and projection: to the rank and back
    forward = 2 * image * patch * config.in_channels * width
    forward += 2 * (_TIME_CHANNELS * width + square + config.pooled_projection_dim * width + square)
    forward += 2 * context * config.joint_attention_dim * width
    output = 2 * image * width * patch * config.out_channels
    forward += 4 * square + output
    backward = output
    for block in range(config.num_layers):
        dual = block in config.dual_attention_layers
        forward += 2 * square * ((9 if dual else 6) + (2 if block == last else 6))
        # the token-wise products with frozen weights, by what they read
        inputs_image = 2 * image * square * (6 if dual else 3)
        inputs_context = 2 * context * square * 3
        inner = 2 * image * square * (2 if dual else 1) + (0 if block == last else 2 * context * square)
        inner += 4 * _FEED_FORWARD * square * (image + (0 if block == last else context))
        attention = 4 * both * both * width + (4 * image * image * width if dual else 0)
        adapted = lora * (image * (8 if dual else 4) + context * (3 if block == last else 4))
        forward += inputs_image + inputs_context + inner + attention + adapted
        backward += inner + 2 * attention + 2 * adapted
        # the first block's input is data: no gradient goes into it, but for embeddings in the context
        if block > 0:
            backward += inputs_image
        else:
            backward -= lora // 2 * image * (6 if dual else 3)
        if block > 0 or embeddings:
            backward += inputs_context
        else:
            backward -= lora // 2 * context * 3
    return Work(forward, backward if rank else 0)
