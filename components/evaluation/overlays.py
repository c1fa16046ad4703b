"""Pictures of the regions that Seg-Cons compares, drawn over the images they were found in."""

from __future__ import annotations

import colorsys

import numpy as np

from components.evaluation.pictures import Picture
from components.evaluation.segmentation import Partition

_MATCHED = 0.1
_SIDE = 192


def match_regions(partition: Partition, onto: Partition) -> Partition:
    """`partition` with each region renumbered as the region of `onto` it overlaps best (IoU >= 0.1); the others get
    numbers of their own. Regions that correspond then have one colour."""
    result = np.zeros_like(partition)
    free = int(onto.max()) + 1
    numbers, areas = np.unique(partition[partition > 0], return_counts=True)
    for number in numbers[np.argsort(-areas, kind="stable")]:
        mask = partition == number
        best, best_iou = 0, 0.0
        for other in np.unique(onto[mask]):
            if other:
                theirs = onto == other
                iou = float((mask & theirs).sum() / (mask | theirs).sum())
                if iou > best_iou:
                    best, best_iou = int(other), iou
        if best_iou < _MATCHED:
            best, free = free, free + 1
        result[mask] = best
    return result


def overlay(picture: Picture, partition: Partition, strength: float = 0.5) -> Picture:
    """The picture with its regions tinted by number and their borders white, small pictures enlarged.

    Pixels of no region keep their colour.
    """
    factor = max(1, -(-_SIDE // min(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.float64)
    regions = partition.repeat(factor, axis=0).repeat(factor, axis=1)
    for number in np.unique(regions[regions > 0]):
        # Steps of the golden ratio keep the hues of neighbouring numbers far apart.
        tint = np.array(colorsys.hsv_to_rgb((0.58 + 0.618034 * (float(number) - 1)) % 1, 0.7, 0.95)) * 255
        mask = regions == number
        large[mask] = (1 - strength) * large[mask] + strength * tint
    border = np.zeros(regions.shape, dtype=np.bool_)
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border[1:] |= regions[1:] != regions[:-1]
    large[border] = 255
    return large.round().clip(0, 255).astype(np.uint8)
