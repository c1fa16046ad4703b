"""Is a method better than another over concepts, or is it chance? A paired test with its effect size."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_RESAMPLES = 9999
"""Sign flips drawn where there are more of them than that; below, all are tried and the test is exact."""


@dataclass(frozen=True)
class PairedTest:
    """What paired differences say.

    Attributes:
        concepts: pairs.
        difference: their mean.
        wins: share of pairs above 0, ties counting half.
        effect: matched-pairs rank-biserial correlation (Kerby, 2014): the share of rank sum above 0 less the share
            below it; 1 where every pair is above 0.
        p_permutation: two-sided, of the mean under random signs; with n pairs never below 2 / 2^n.
        p_wilcoxon: two-sided, of Wilcoxon's signed-rank test. Both are NaN with fewer than two pairs that differ.
    """

    concepts: int
    difference: float
    wins: float
    effect: float
    p_permutation: float
    p_wilcoxon: float

    def to_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def paired_test(differences_N: NDArray[np.float64]) -> PairedTest:
    """Test whether paired differences lie around 0."""
    count = len(differences_N)
    if count == 0:
        return PairedTest(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    difference = float(differences_N.mean())
    wins = float(((differences_N > 0) + 0.5 * (differences_N == 0)).mean())
    other_than_zero = differences_N[differences_N != 0]
    if len(other_than_zero) < 2:
        effect = float(np.sign(other_than_zero).sum())
        return PairedTest(count, difference, wins, effect, math.nan, math.nan)
    ranks = stats.rankdata(np.abs(other_than_zero))
    effect = float((np.sign(other_than_zero) * ranks).sum() / ranks.sum())
    permutation = stats.permutation_test(
        (differences_N,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    wilcoxon = stats.wilcoxon(other_than_zero)
    return PairedTest(count, difference, wins, effect, float(permutation.pvalue), float(wilcoxon.pvalue))
