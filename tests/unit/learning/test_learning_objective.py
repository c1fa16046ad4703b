"""The objective's gradients, the envelope theorem and the definitions of its metrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from components.learning.objective import guidance_metrics, guide, lambda_star, squared_error

SHAPE = (2, 2, 3, 3)


def fields(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(SHAPE, generator=random, dtype=dtype) for _ in range(count)]


def loss_pcc(v_complete: Tensor, v_orig: Tensor, guidance: Tensor, target: Tensor, eta: float) -> Tensor:
    step = guide(v_complete, v_orig, guidance)
    return squared_error(v_complete, target) + eta * squared_error(v_complete, step.target_BCHW)


def test_loss_is_the_equation() -> None:
    v_complete, v_orig, guidance, target = fields(4)
    expected = 0.0
    for sample in range(SHAPE[0]):
        c, o, g, y = (field[sample].flatten().tolist() for field in (v_complete, v_orig, guidance, target))
        scale = sum((ci - oi) * gi for ci, oi, gi in zip(c, o, g)) / sum(gi * gi for gi in g)
        pure = sum((oi + scale * gi - ci) ** 2 for ci, oi, gi in zip(c, o, g))
        plain = sum((yi - ci) ** 2 for ci, yi in zip(c, y))
        expected += (plain + 1.5 * pure) / v_complete.numel()
    assert float(loss_pcc(v_complete, v_orig, guidance, target, 1.5)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("through_orig", [False, True], ids=["frozen", "trainable"])
def test_gradients_against_finite_differences(through_orig: bool) -> None:
    v_complete, v_orig, guidance, target = fields(4)
    v_complete.requires_grad_(True)
    v_orig.requires_grad_(through_orig)
    inputs = (v_complete, v_orig) if through_orig else (v_complete,)
    gradients = torch.autograd.grad(loss_pcc(v_complete, v_orig, guidance, target, 1.5), inputs)
    step = 1e-6
    for value, gradient in zip(inputs, gradients, strict=True):
        flat = value.detach().reshape(-1)
        for index in range(0, flat.numel(), 5):
            before = float(flat[index])
            flat[index] = before + step
            above = float(loss_pcc(v_complete.detach(), v_orig.detach(), guidance, target, 1.5))
            flat[index] = before - step
            below = float(loss_pcc(v_complete.detach(), v_orig.detach(), guidance, target, 1.5))
            flat[index] = before
            assert float(gradient.reshape(-1)[index]) == pytest.approx((above - below) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("through_orig", [False, True])
def test_envelope_theorem(through_orig: bool) -> None:
    """lambda* minimises the loss: with its gradient or without, the gradient of the loss is the same."""
    v_complete, v_orig, guidance, _ = fields(4)
    v_complete.requires_grad_(True)
    v_orig.requires_grad_(through_orig)
    inputs = (v_complete, v_orig) if through_orig else (v_complete,)
    detached = torch.autograd.grad(squared_error(v_complete, guide(v_complete, v_orig, guidance).target_BCHW), inputs)
    scale = lambda_star(v_complete - v_orig, guidance)
    assert scale.requires_grad
    attached = torch.autograd.grad(squared_error(v_complete, v_orig + scale.reshape(-1, 1, 1, 1) * guidance), inputs)
    for one, other in zip(detached, attached, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradient_of_the_pure_loss_is_orthogonal_to_the_guidance() -> None:
    """What L_PureCC confines: it pulls on everything but the guidance direction."""
    v_complete, v_orig, guidance = fields(3)
    v_complete.requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        squared_error(v_complete, guide(v_complete, v_orig, guidance).target_BCHW), [v_complete]
    )
    inner = (gradient * guidance).flatten(1).sum(1)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-12)


def test_no_gradient_flows_into_the_guidance() -> None:
    v_complete, v_orig, guidance, target = fields(4)
    v_complete.requires_grad_(True)
    guidance.requires_grad_(True)
    loss_pcc(v_complete, v_orig, guidance, target, 1.0).backward()
    assert guidance.grad is None
    assert not guide(v_complete, v_orig, guidance).lambda_star_B.requires_grad


def test_metrics_are_what_their_names_say() -> None:
    v_orig = torch.zeros(2, 1, 1, 2)
    guidance = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
    v_complete = torch.tensor([[[[3.0, 4.0]]], [[[0.0, -2.0]]]])
    metrics = guidance_metrics(guide(v_complete, v_orig, guidance), v_complete, v_orig)
    # lambda: 3 and -1; cosines: 3/5 and -1; norms: 1 and 2
    assert {key: pytest.approx(float(value)) for key, value in metrics.items()} == {
        "lambda_star/mean": 1.0,
        "lambda_star/std": 2.0,
        "lambda_star/min": -1.0,
        "lambda_star/max": 3.0,
        "guidance/norm": 1.5,
        "guidance/cosine": (0.6 - 1.0) / 2,
    }
    assert all(
        math.isfinite(float(value))
        for value in guidance_metrics(
            guide(v_complete, v_complete, torch.zeros_like(guidance)), v_complete, v_complete
        ).values()
    )
