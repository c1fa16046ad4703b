"""lambda* against an independent NumPy version in float64, and what follows from its closed form (METHOD section 4)."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from components.learning.objective import guide, lambda_star, squared_error

SHAPE = (3, 2, 4, 4)
FIELDS = hnp.arrays(np.float64, SHAPE, elements=st.floats(-4, 4, width=32))


def reference_lambda(learned: np.ndarray, guidance: np.ndarray) -> np.ndarray:
    """Equation 12, one sample at a time, as least squares: no line shared with the implementation."""
    scales = []
    for r_cb, r_tar in zip(learned, guidance, strict=True):
        solution, *_ = np.linalg.lstsq(r_tar.reshape(-1, 1), r_cb.reshape(-1), rcond=None)
        scales.append(solution[0])
    return np.array(scales)


def norms(field: np.ndarray) -> np.ndarray:
    return np.sqrt((field.reshape(len(field), -1) ** 2).sum(1))


def pure_loss(learned: np.ndarray, guidance: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """L_PureCC of each sample through the implementation, with v_orig = 0."""
    v_complete, r_tar = torch.tensor(learned, dtype=dtype), torch.tensor(guidance, dtype=dtype)
    step = guide(v_complete, torch.zeros_like(v_complete), r_tar)
    return np.array([float(squared_error(v_complete[i : i + 1], step.target_BCHW[i : i + 1])) for i in range(SHAPE[0])])


@settings(deadline=None, max_examples=60)
@given(FIELDS, FIELDS)
def test_equals_least_squares(learned: np.ndarray, guidance: np.ndarray) -> None:
    assume((norms(guidance) > 1e-2).all())
    got = lambda_star(torch.tensor(learned), torch.tensor(guidance)).numpy()
    np.testing.assert_allclose(got, reference_lambda(learned, guidance), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(FIELDS, FIELDS)
def test_residual_is_orthogonal_to_the_guidance(learned: np.ndarray, guidance: np.ndarray) -> None:
    assume((norms(guidance) > 1e-2).all())
    scale = lambda_star(torch.tensor(learned), torch.tensor(guidance)).numpy()
    residual = learned - scale[:, None, None, None] * guidance
    inner = (residual * guidance).reshape(len(learned), -1).sum(1)
    assert (np.abs(inner) <= 1e-9 * (1 + norms(learned) * norms(guidance))).all()


@settings(deadline=None, max_examples=60)
@given(FIELDS, FIELDS)
def test_loss_lies_between_zero_and_the_learned_concept(learned: np.ndarray, guidance: np.ndarray) -> None:
    loss = pure_loss(learned, guidance)
    ceiling = norms(learned) ** 2 / np.prod(SHAPE[1:])
    assert (loss >= 0).all()
    assert (loss <= ceiling * (1 + 1e-9) + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(FIELDS, FIELDS, st.floats(1e-2, 1e2), st.booleans())
def test_scaling_the_guidance(learned: np.ndarray, guidance: np.ndarray, c: float, negative: bool) -> None:
    assume((norms(guidance) > 1e-1).all())
    c = -c if negative else c
    one = lambda_star(torch.tensor(learned), torch.tensor(guidance)).numpy()
    other = lambda_star(torch.tensor(learned), torch.tensor(c * guidance)).numpy()
    np.testing.assert_allclose(other, one / c, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pure_loss(learned, c * guidance), pure_loss(learned, guidance), rtol=1e-8, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(FIELDS, st.floats(-5, 5))
def test_a_concept_along_the_guidance_costs_nothing(guidance: np.ndarray, c: float) -> None:
    assume((norms(guidance) > 1e-1).all())
    scale = lambda_star(torch.tensor(c * guidance), torch.tensor(guidance)).numpy()
    np.testing.assert_allclose(scale, c, rtol=1e-9, atol=1e-12)
    assert (pure_loss(c * guidance, guidance) <= 1e-18 * (1 + norms(guidance) ** 2)).all()


@settings(deadline=None, max_examples=60)
@given(FIELDS, FIELDS, st.sampled_from([0.0, 1e-30, 1e-20, 1e-12, 1e-9, 1e-6, 1e-3]))
def test_vanishing_guidance_stays_finite_and_bounded(learned: np.ndarray, guidance: np.ndarray, size: float) -> None:
    """In float32, as in training: finite, and |lambda| ||R_tar|| never exceeds ||R_cb||."""
    r_cb, r_tar = torch.tensor(learned, dtype=torch.float32), torch.tensor(size * guidance, dtype=torch.float32)
    step = guide(r_cb, torch.zeros_like(r_cb), r_tar)
    assert torch.isfinite(step.lambda_star_B).all()
    assert torch.isfinite(step.target_BCHW).all()
    pulled = step.lambda_star_B.abs().double().numpy() * norms(r_tar.double().numpy())
    assert (pulled <= norms(learned) * (1 + 1e-4) + 1e-6).all()


def test_no_guidance_means_lambda_zero() -> None:
    learned = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    step = guide(learned, torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert torch.equal(step.lambda_star_B, torch.zeros(SHAPE[0]))
    assert torch.equal(step.target_BCHW, torch.zeros(SHAPE))


def test_one_bad_sample_does_not_touch_the_others() -> None:
    """Per sample, not per batch: a sample without guidance leaves the scale of its neighbours alone."""
    random = torch.Generator().manual_seed(0)
    learned, guidance = torch.randn(SHAPE, generator=random), torch.randn(SHAPE, generator=random)
    alone = lambda_star(learned, guidance)
    guidance[1] = 0
    beside = lambda_star(learned, guidance)
    assert beside[1] == 0
    assert torch.equal(beside[[0, 2]], alone[[0, 2]])


def test_bfloat16_velocities_are_summed_in_float32() -> None:
    """1,048,576 equal terms: in bfloat16 the sum would stall at 256."""
    ones = torch.ones(1, 16, 256, 256, dtype=torch.bfloat16)
    assert lambda_star(ones, ones).item() == 1.0
    assert lambda_star(ones, ones).dtype == torch.float32
