"""Differences to the base's own weights, for what LoRA cannot hold: full fine-tuning, single projections, fused LoRA.

The base's tensors never change: while such an adapter acts, its modules hold `W + difference` in their place, so that
any number of adapters shares one base and a difference trains like any other parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def base_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The base's own weights under their own names, whether or not LoRA layers stand around them."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in transformer.named_parameters()
        if ".lora_" not in name
    }


def module_of(transformer: nn.Module, weight: str) -> tuple[nn.Module, str]:
    """The module that holds the base's weight of that name, and its name there."""
    path, _, attribute = weight.rpartition(".")
    module = transformer.get_submodule(path)
    if isinstance(module, LoraLayer):
        module = module.get_base_layer()
    return module, attribute


class WeightSwitch:
    """Which differences act in a forward pass; outside of `adding` and `holding` none does."""

    def __init__(self, transformer: nn.Module):
        self._transformer = transformer
        self._held: dict[str, Tensor] = {}

    @property
    def held(self) -> Mapping[str, Tensor]:
        """Name -> the weight that acts now in the place of the base's."""
        return self._held

    @contextmanager
    def adding(self, differences: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, these differences are added to the base's weights; differentiable in them."""
        sums = {}
        for name, difference in differences.items():
            module, attribute = module_of(self._transformer, name)
            weight = module._parameters[attribute]
            assert weight is not None
            # added in the difference's float32: a bfloat16 weight would swallow what a small learning rate adds
            sums[name] = (weight.detach() + difference).to(weight.dtype)
        with self.holding(sums):
            yield

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the modules hold these weights."""
        places = {name: module_of(self._transformer, name) for name in weights}
        before = {name: module._parameters[attribute] for name, (module, attribute) in places.items()}
        held, self._held = self._held, {**weights}
        try:
            for name, (module, attribute) in places.items():
                module._parameters[attribute] = weights[name]  # type: ignore[assignment]  # any tensor will do
            yield
        finally:
            for name, (module, attribute) in places.items():
                module._parameters[attribute] = before[name]
            self._held = held
