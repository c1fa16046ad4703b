"""Seg-Cons: how alike two pictures are cut into regions, 0 to 100.

For mask sets A and B: 100 * (sum_a |a| max_b IoU(a, b) / sum_a |a| + the same from B to A) / 2. The masks are first
painted from large to small, so that each pixel belongs to at most one region: overlapping masks (SAM gives parts and
wholes) would count pixels twice. Equal sets score 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.segmenters import Mask

Partition = NDArray[np.int64]
"""(H, W): the number of the region a pixel belongs to, 0 where it belongs to none."""


def paint(masks: Sequence[Mask], shape: tuple[int, int]) -> Partition:
    """Paint masks from large to small: a smaller one covers a larger one.

    Masks of equal area are painted in the order of their first pixels, so that the order of the list is without effect.
    """

    def order(mask: Mask) -> tuple[int, bytes]:
        return -int(mask.sum()), np.packbits(~mask).tobytes()

    partition = np.zeros(shape, dtype=np.int64)
    for number, mask in enumerate(sorted(masks, key=order), 1):
        partition[mask] = number
    return partition


def seg_cons(first: Partition, second: Partition, within: NDArray[np.bool_] | None = None) -> float:
    """Symmetric area-weighted best-IoU covering of two partitions, in [0, 100].

    Args:
        within: if given, only these pixels count: regions are cut to them first.

    Two empty partitions are equal: 100. One empty, one not: 0.
    """
    if first.shape != second.shape:
        raise ValueError(f"the partitions have the shapes {first.shape} and {second.shape}")
    if within is not None:
        first, second = np.where(within, first, 0), np.where(within, second, 0)
    a, a_count = _dense(first)
    b, b_count = _dense(second)
    if a_count == 0 or b_count == 0:
        return 100.0 if a_count == b_count else 0.0
    both = np.bincount(a * (b_count + 1) + b, minlength=(a_count + 1) * (b_count + 1))
    common = both.reshape(a_count + 1, b_count + 1).astype(np.float64)
    a_area, b_area = common.sum(axis=1)[1:], common.sum(axis=0)[1:]
    shared = common[1:, 1:]
    iou = shared / (a_area[:, None] + b_area[None, :] - shared)
    forward = float((a_area * iou.max(axis=1)).sum() / a_area.sum())
    backward = float((b_area * iou.max(axis=0)).sum() / b_area.sum())
    return 100 * (forward + backward) / 2


def _dense(partition: Partition) -> tuple[NDArray[np.int64], int]:
    """Regions renumbered 1..n without gaps, 0 kept; and n."""
    numbers, dense = np.unique(np.append(partition.reshape(-1), 0), return_inverse=True)
    result: NDArray[Any] = dense[:-1].astype(np.int64)
    return result, len(numbers) - 1
