"""All randomness of a training, derived from the profile's seed alone.

There is no generator whose state would have to be kept: what a step draws depends on (seed, stage, step, ...) only, so
a resumed training draws exactly what an unbroken one does.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed of 63 bits for one purpose."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator for one purpose: equal arguments, equal draws, on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


def draw_references(count: int, *, total: int, start: int, seed: int, stage: str) -> list[int]:
    """Indices of the references at positions start, start + 1, ... of an endless sequence of shuffled passes.

    Every reference is used once in each pass.
    """
    drawn, epoch, order = [], -1, torch.empty(0, dtype=torch.long)
    for position in range(start, start + count):
        if position // total != epoch:
            epoch = position // total
            order = torch.randperm(total, generator=generator(seed, stage, "order", epoch))
        drawn.append(int(order[position % total]))
    return drawn
