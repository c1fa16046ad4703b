"""Exponential moving average of the parameters that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """ema <- d ema + (1 - d) parameter, with d = min(decay, (1 + step) / (10 + step)): early steps are forgotten.

    With decay None it is the parameters themselves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None):
        self._parameters, self._decay = parameters, decay
        self.values: dict[str, Tensor] = {}
        if decay is not None:
            self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self._decay is None:
            return
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self._parameters[name].detach(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters hold the average."""
        with torch.no_grad():
            before = {name: self._parameters[name].detach().clone() for name in self.values}
            for name, value in self.values.items():
                self._parameters[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    self._parameters[name].copy_(value)
