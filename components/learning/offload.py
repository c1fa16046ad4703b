"""What the backward pass needs, kept in the host's memory instead of the GPU's: exact, and slower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def _is_weight(value: Tensor) -> bool:
    """Whether a saved tensor is a weight or a view of one: those stay on the GPU in any case."""
    return isinstance(value, nn.Parameter) or isinstance(value._base, nn.Parameter) or type(value) is not Tensor


@contextlib.contextmanager
def activations_on_host(wanted: bool = True) -> Iterator[None]:
    """Within, activations that are saved for the backward pass are copied to the host, and back when they are needed.

    torch's own `save_on_cpu` would copy the frozen weights as well, gigabytes in every step.
    """
    if not wanted:
        yield
        return

    def pack(value: Tensor) -> tuple[torch.device, Tensor]:
        if _is_weight(value):
            return value.device, value
        on_host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)  # the same strides, the same rounding
        return value.device, on_host.copy_(value)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, value = packed
        return value.to(device, non_blocking=True)

    with saved_tensors_hooks(pack, unpack):
        yield
