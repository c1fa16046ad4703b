"""The frozen base's weights in 8 bits while an adapter trains on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.errors import InvalidInput


def frozen_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Name below the transformer's blocks -> linear layer of the base; LoRA's own are none."""
    blocks = transformer.get_submodule("transformer_blocks")
    return {
        name: module for name, module in blocks.named_modules() if type(module) is nn.Linear and "lora_" not in name
    }


@contextlib.contextmanager
def int8_weights(transformer: nn.Module) -> Iterator[None]:
    """Within, the linear layers of the transformer's blocks hold int8 weights with a scale per row (torchao).

    The weights wait in the host's memory and are back afterwards, bit for bit.

    Raises:
        InvalidInput: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InvalidInput(
            "quantising the base needs torchao, which is not installed",
            field="learning.quantize_base",
            mend="pip install 'purecc[quantization]'",
        ) from error
    linears = frozen_linears(transformer)
    device = next(iter(linears.values())).weight.device
    kept: dict[str, Tensor] = {name: module.weight.detach().to("cpu") for name, module in linears.items()}
    try:
        quantize_(
            transformer.get_submodule("transformer_blocks"),
            Int8WeightOnlyConfig(),
            filter_fn=lambda _module, name: name in linears,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield
    finally:
        for name, module in linears.items():
            module.weight = nn.Parameter(kept[name].to(device), requires_grad=False)
