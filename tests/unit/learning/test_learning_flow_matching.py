"""The path from data to noise and the distribution of t."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from components.learning.flow_matching import interpolate, sample_times, shift_times
from components.learning.randomness import derive_seed, draw_references, generator


def test_path_ends_at_data_and_noise_and_has_a_constant_velocity() -> None:
    x_0, x_1 = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    assert torch.equal(interpolate(x_0, x_1, torch.zeros(3)).x_t_BCHW, x_0)
    assert torch.equal(interpolate(x_0, x_1, torch.ones(3)).x_t_BCHW, x_1)
    here, there = interpolate(x_0, x_1, torch.full((3,), 0.25)), interpolate(x_0, x_1, torch.full((3,), 0.75))
    torch.testing.assert_close((there.x_t_BCHW - here.x_t_BCHW) / 0.5, here.target_BCHW)
    # one Euler step of the true velocity from any t leads back to the data
    mixed = interpolate(x_0, x_1, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(mixed.x_t_BCHW - mixed.t_B.reshape(-1, 1, 1, 1) * mixed.target_BCHW, x_0)


def test_shift_is_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    raw = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(shift_times(raw, 3.0), scheduler.timesteps / 1000)
    assert torch.equal(shift_times(raw, 1.0), raw)


def test_times_are_logit_normal_before_the_shift() -> None:
    t = sample_times(20_000, generator=torch.Generator().manual_seed(0), mean=0.4, std=0.8, shift=3.0)
    assert t.min() > 0
    assert t.max() < 1
    unshifted = t / (3 - 2 * t)  # inverse of the shift
    logits = torch.logit(unshifted)
    assert abs(float(logits.mean()) - 0.4) < 0.02
    assert abs(float(logits.std()) - 0.8) < 0.02


def test_each_pass_uses_every_reference_once() -> None:
    drawn = draw_references(35, total=5, start=0, seed=1, stage="s")
    for epoch in range(7):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert len({tuple(drawn[5 * epoch : 5 * epoch + 5]) for epoch in range(7)}) > 1
    # a step that starts anywhere sees the same sequence
    assert draw_references(4, total=5, start=13, seed=1, stage="s") == drawn[13:17]


def test_seeds_differ_by_purpose_and_agree_with_themselves() -> None:
    purposes = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1)]
    assert len({derive_seed(*purpose) for purpose in purposes}) == 4
    assert torch.equal(torch.randn(3, generator=generator(0, "a")), torch.randn(3, generator=generator(0, "a")))
