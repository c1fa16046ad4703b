"""Checkpoints: whole or not at all, refused for another training; and the moving average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.errors import InvalidInput
from components.learning.checkpoints import Checkpoint, Checkpoints
from components.learning.moving_average import MovingAverage


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, {"parameter.a": torch.arange(4.0) + step, "step": torch.tensor(float(step))}, {"scale": 2.0}
    )


def test_the_newest_comes_back_exactly_and_alone(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "c", "key")
    assert store.latest() is None
    for step in (5, 10):
        store.save(checkpoint(step))
    found = store.latest()
    assert found is not None
    assert (found.step, dict(found.scaler)) == (10, {"scale": 2.0})
    assert torch.equal(found.tensors["parameter.a"], torch.arange(4.0) + 10)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["00000010"]


def test_remains_of_an_interrupted_write_are_removed(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "c", "key")
    store.save(checkpoint(5))
    partial = tmp_path / "c" / ".00000010.abc.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    found = store.latest()
    assert found is not None
    assert found.step == 5
    assert not partial.exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "c", "key")
    store.save(checkpoint(5))
    whole = tmp_path / "whole"
    (tmp_path / "c" / "00000005").rename(whole)
    store.save(checkpoint(10))
    whole.rename(tmp_path / "c" / "00000005")
    tensors = tmp_path / "c" / "00000010" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    found = store.latest()
    assert found is not None
    assert found.step == 5


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "c", "key").save(checkpoint(5))
    with pytest.raises(InvalidInput, match="other data, settings or base") as error:
        Checkpoints(tmp_path / "c", "another").latest()
    assert error.value.mend


def test_moving_average() -> None:
    value = torch.nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"a": value}, 0.5)
    expected = 1.0
    for step in range(1, 20):
        with torch.no_grad():
            value.fill_(float(step))
        average.update(step)
        weight = min(0.5, (1 + step) / (10 + step))
        expected = weight * expected + (1 - weight) * step
    assert float(average.values["a"]) == pytest.approx(expected)
    with average.applied():
        assert float(value) == pytest.approx(expected)
    assert float(value) == 19.0


def test_without_decay_there_is_no_average() -> None:
    value = torch.nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"a": value}, None)
    average.update(1)
    with average.applied():
        assert float(value) == 1.0
    assert average.values == {}
