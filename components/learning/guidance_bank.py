"""Guidance of the frozen extractor, computed before the first step for a bank of (reference, noise, t).

A step without a bank draws new noise and t, and computes what does not train at that point: the extractor's two passes
and, where v_orig is the base's, a third. With a bank of K draws per reference these passes are done once for each of
the K N points, in large batches, and a step costs what a plain LoRA step does. The price: the adapter sees the same K
draws again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from components.learning.cache import ConditionedBatch, EncodedConcept
from components.learning.flow_matching import FlowSample, interpolate, sample_times
from components.learning.randomness import generator
from components.learning_settings import LearningSettings

Fixed = Callable[[FlowSample, ConditionedBatch], tuple[Tensor, ...]]
"""The velocities at some points that no step changes."""

_BATCH = 4
"""References of a batch in filling the bank, in batches of a step: there are no activations to keep."""


class GuidanceBank:
    """K draws of noise and t for each of N references, with what is fixed there.

    Args:
        fixed: computes it.
        shift: the timestep shift.
    """

    def __init__(
        self, encoded: EncodedConcept, fixed: Fixed, settings: LearningSettings, *, seed: int, stage: str, shift: float
    ):
        assert settings.guidance_bank is not None
        self.draws = settings.guidance_bank
        self._encoded, self._fixed, self._settings = encoded, fixed, settings
        self._seed, self._stage, self._shift = seed, stage, shift
        self._kept: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def point(self, references: Sequence[int], draws: Sequence[int]) -> tuple[FlowSample, ConditionedBatch]:
        """The path's points of these references at these draws, which depend on the seed alone."""
        batch = self._encoded.batch(references)
        noise, times = [], []
        for reference, draw in zip(references, draws, strict=True):
            random = generator(self._seed, self._stage, "bank", reference, draw)
            times.append(
                sample_times(
                    1,
                    generator=random,
                    mean=self._settings.logit_mean,
                    std=self._settings.logit_std,
                    shift=self._shift,
                )
            )
            noise.append(torch.randn(batch.x_0_BCHW.shape[1:], generator=random))
        device = batch.x_0_BCHW.device
        return interpolate(batch.x_0_BCHW, torch.stack(noise).to(device), torch.cat(times).to(device)), batch

    @torch.no_grad()
    def fill(self) -> None:
        """Compute what is fixed at every point; it waits in the host's memory."""
        points = [(reference, draw) for reference in range(len(self._encoded.digests)) for draw in range(self.draws)]
        size = _BATCH * self._settings.batch_size
        for start in range(0, len(points), size):
            members = points[start : start + size]
            flow, batch = self.point([reference for reference, _ in members], [draw for _, draw in members])
            values = [value.cpu() for value in self._fixed(flow, batch)]
            for index, member in enumerate(members):
                self._kept[member] = tuple(value[index] for value in values)

    def draw(self, references: Sequence[int], draws: Sequence[int]) -> tuple[FlowSample, ConditionedBatch]:
        """The points, with what is fixed there."""
        flow, batch = self.point(references, draws)
        kept = [self._kept[member] for member in zip(references, draws, strict=True)]
        device = flow.x_t_BCHW.device
        return flow, replace(batch, fixed=tuple(torch.stack(values).to(device) for values in zip(*kept, strict=True)))
