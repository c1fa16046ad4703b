"""Stopping a training by references that it does not see, and keeping its best step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from components.learning_settings import EarlyStoppingSettings


class EarlyStopping:
    """Follows a validation loss; part of the training's checkpoints, so that a resumed one decides alike.

    Args:
        parameters: what trains; its best value is kept.
        validate: the validation loss of the parameters as they are.
    """

    def __init__(
        self, settings: EarlyStoppingSettings, parameters: Mapping[str, nn.Parameter], validate: Callable[[], float]
    ):
        self._settings, self._parameters, self._validate = settings, parameters, validate
        self.latest, self.best_loss, self.best_step, self.since = math.inf, math.inf, 0, 0
        self.best = {name: value.detach().clone() for name, value in parameters.items()}

    @property
    def stopped(self) -> bool:
        return self.since >= self._settings.patience

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Validate, if it is time to."""
        if step % self._settings.every:
            return
        self.latest = self._validate()
        if self.latest < self.best_loss:
            self.best_loss, self.best_step, self.since = self.latest, step, 0
            for name, value in self._parameters.items():
                self.best[name].copy_(value)
        else:
            self.since += 1

    @contextmanager
    def best_applied(self) -> Iterator[None]:
        """Within, the parameters hold their best value."""
        before = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._copy(self.best)
        try:
            yield
        finally:
            self._copy(before)

    def state(self) -> dict[str, Tensor]:
        facts = torch.tensor([self.latest, self.best_loss, self.best_step, self.since], dtype=torch.float64)
        return {"facts": facts} | {f"best.{name}": value for name, value in self.best.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.latest, self.best_loss, best_step, since = state["facts"].tolist()
        self.best_step, self.since = int(best_step), int(since)
        for name, value in self.best.items():
            value.copy_(state[f"best.{name}"])

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._parameters.items():
            value.copy_(values[name])
