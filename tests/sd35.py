"""The published shape of Stable Diffusion 3.5 Medium, for tests and benchmarks that have not its weights."""

from __future__ import annotations

from typing import Any

# transformer/config.json of stabilityai/stable-diffusion-3.5-medium
TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
# the same fields, shrunk to what a CPU trains in seconds
SHRUNKEN: dict[str, Any] = {
    **TRANSFORMER,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "dual_attention_layers": (0, 1),
    "joint_attention_dim": 48,
    "num_attention_heads": 2,
    "num_layers": 3,
    "pooled_projection_dim": 16 + 24,
    "pos_embed_max_size": 48,
    "sample_size": 16,
}
# vae/config.json of the same
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
SHIFT = 3.0
CLIP_ROWS, T5_ROWS = 77, 256
