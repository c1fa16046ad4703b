"""The counted operations against torch's own counter, which sees every matrix product that is really done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.backbones.flops import Work, tokens_of, work_of
from components.backbones.sd3 import SD3Backbone
from components.settings import LoraSettings

TEXTS = ["a [V] star", "a [V] heart, brick background"]


def counted(run: Callable[[], object]) -> int:
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # other kernels are not counted on CPU
        run()
    return int(counter.get_total_flops())


def stated(backbone: SD3Backbone, *, rank: int = 0, embeddings: bool = False) -> Work:
    config = backbone.transformer.config
    _, height, width = backbone.latent_shape
    context_tokens = backbone.encode_text(TEXTS).context_BLD.shape[1]
    tokens = tokens_of(config, height, width)
    return work_of(config, image_tokens=tokens, context_tokens=context_tokens, rank=rank, embeddings=embeddings)


def test_a_forward_pass(backbone: SD3Backbone) -> None:
    text = backbone.encode_text(TEXTS)
    x, t = torch.randn(2, *backbone.latent_shape), torch.tensor([0.2, 0.8])
    with torch.no_grad():
        assert counted(lambda: backbone.velocity(x, t, text, None)) == 2 * stated(backbone).forward


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_training_step(backbone: SD3Backbone, rank: int, embeddings: bool) -> None:
    text = backbone.encode_text(TEXTS)
    x, t = torch.randn(2, *backbone.latent_shape), torch.tensor([0.2, 0.8])
    rows = backbone.measure_context_rows(text, x) if embeddings else None
    backbone.create_adapter("new", concept="x", lora=LoraSettings(rank=rank, alpha=rank), embeddings_NRD=rows)
    for kind in backbone.parameters("new").values():
        for parameter in kind.values():
            parameter.requires_grad_(True)
    total = counted(lambda: backbone.velocity(x, t, text, "new").square().sum().backward())
    assert total == 2 * stated(backbone, rank=rank, embeddings=embeddings).step


def test_stable_diffusion_3_5_medium_by_its_published_shape() -> None:
    """Against a count by hand: parameters that every token passes, and the two products of attention."""
    from types import SimpleNamespace

    config = SimpleNamespace(
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        dual_attention_layers=tuple(range(13)),
    )
    tokens = tokens_of(config, 128, 128)
    assert tokens == 4096
    work = work_of(config, image_tokens=tokens, context_tokens=333)
    image = 2 * 4096 * 1536**2 * (24 * 12 + 13 * 4)
    context = 2 * 333 * 1536**2 * (24 * 12 - 9)
    attention = 4 * 1536 * (24 * 4429**2 + 13 * 4096**2)
    assert work.forward == pytest.approx(image + context + attention, rel=0.002)

    assert work.backward == 0, "without LoRA nothing trains"
