"""KL divergence between the feature distributions of two sets of pictures.

Estimator: both sets are taken as Gaussian; each covariance is the maximum-likelihood one, shrunk towards a multiple
of the identity with the intensity of Ledoit and Wolf (2004), estimated once on both sets together, so that the two
covariances are treated alike. KL(custom || original) in nats, closed form.

Bias: upward, and larger the fewer the pictures are against the feature width; shrinkage lessens it. So the value is
read against its floor, the same estimate for two sets of the original model's own pictures, of the same prompts and
number, and it is not reported below `MINIMUM_SAMPLES` pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.evaluation.encoders import Features

MINIMUM_SAMPLES = 32


def shrinkage_intensity(samples_ND: NDArray[np.float64]) -> float:
    """The share of the scaled identity in the best convex mixture with the covariance (Ledoit and Wolf, 2004), 0 to 1.

    With S the maximum-likelihood covariance, m = tr(S)/D, d^2 = ||S - m I||^2 and
    b^2 = min(d^2, sum_n ||x_n x_n^T - S||^2 / N^2), it is b^2 / d^2 (squared Frobenius norms).
    """
    count, width = samples_ND.shape
    centred_ND = samples_ND - samples_ND.mean(axis=0)
    covariance_DD = centred_ND.T @ centred_ND / count
    distance = float(((covariance_DD - np.trace(covariance_DD) / width * np.eye(width)) ** 2).sum())
    if distance == 0:
        return 1.0
    # sum_n ||x x^T - S||^2 = sum_n ||x||^4 - N ||S||^2, since sum_n x x^T = N S.
    fourth = float(((centred_ND**2).sum(axis=1) ** 2).sum())
    error = (fourth - count * float((covariance_DD**2).sum())) / count**2
    return float(min(max(error / distance, 0.0), 1.0))


def gaussian_kl(custom_ND: Features, original_ND: Features) -> float:
    """KL(custom || original) in nats, by the estimator above; 0 for equal sets.

    Raises:
        ValueError: a set has fewer than `MINIMUM_SAMPLES` rows.
    """
    if min(len(custom_ND), len(original_ND)) < MINIMUM_SAMPLES:
        raise ValueError(f"needs at least {MINIMUM_SAMPLES} pictures in each set")
    width = custom_ND.shape[1]
    residuals_ND = np.concatenate([custom_ND - custom_ND.mean(axis=0), original_ND - original_ND.mean(axis=0)])
    intensity = shrinkage_intensity(residuals_ND)

    def fit(samples_ND: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean_D = samples_ND.mean(axis=0)
        centred_ND = samples_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / len(samples_ND)
        scale = max(np.trace(covariance_DD) / width, np.finfo(np.float64).eps)
        # Identical pictures have no covariance at all: a least share of the identity keeps the matrices regular.
        share = max(intensity, 1e-6)
        return mean_D, (1 - share) * covariance_DD + share * scale * np.eye(width)

    mean_c_D, covariance_c_DD = fit(custom_ND)
    mean_o_D, covariance_o_DD = fit(original_ND)
    ratio_DD = np.linalg.solve(covariance_o_DD, covariance_c_DD)
    offset_D = mean_o_D - mean_c_D
    mahalanobis = float(offset_D @ np.linalg.solve(covariance_o_DD, offset_D))
    log_ratio = float(np.linalg.slogdet(covariance_o_DD)[1] - np.linalg.slogdet(covariance_c_DD)[1])
    return float((np.trace(ratio_DD) - width + mahalanobis + log_ratio) / 2)
