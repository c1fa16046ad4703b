"""The pre-training loop: an interrupted run ends bit for bit where an unbroken one does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.world.pretraining.loop import LoopSettings, Objective, train

SETTINGS = LoopSettings(
    steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, muon=("hidden",), checkpoint_every=4, log_every=1
)


class _Interrupted(Exception):
    pass


class _Regression(Objective):
    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 1)
        self.stop = stop

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        if step == self.stop:
            raise _Interrupted
        x = torch.randn(size, 8)
        return {"x": x, "y": x[:, :1] ** 2 + torch.tensor(rng.normal(size=(size, 1))).float()}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": (self.out(self.hidden(batch["x"]).tanh()) - batch["y"]).square().mean().float()}


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_an_interrupted_run_ends_where_an_unbroken_one_does(tmp_path: Path, stop: int) -> None:
    whole = train(_Regression(), SETTINGS, folder=tmp_path / "whole", seed=3)
    with pytest.raises(_Interrupted):
        train(_Regression(stop), SETTINGS, folder=tmp_path / "broken", seed=3)
    resumed = train(_Regression(), SETTINGS, folder=tmp_path / "broken", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "broken")]
    assert histories[0] == histories[1]
    assert [json.loads(line)["step"] for line in histories[0].splitlines()] == list(range(12))


def test_the_average_is_kept_not_the_last_weights(tmp_path: Path) -> None:
    settings = LoopSettings(steps=6, batch_size=4, learning_rate=1e-2, average_decay=None, warmup_steps=1)
    last = train(_Regression(), settings, folder=tmp_path / "last", seed=0)
    averaged = train(
        _Regression(),
        LoopSettings(steps=6, batch_size=4, learning_rate=1e-2, average_decay=0.9, warmup_steps=1),
        folder=tmp_path / "averaged",
        seed=0,
    )
    assert not torch.equal(last.hidden.weight, averaged.hidden.weight)  # type: ignore[union-attr,arg-type]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class _Broken(_Regression):
        def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            return {"loss": super().forward(batch)["loss"] * float("nan")}

    with pytest.raises(FloatingPointError, match="step 0"):
        train(_Broken(), SETTINGS, folder=tmp_path, seed=0)
