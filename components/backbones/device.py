"""Where a base runs."""

from __future__ import annotations

import os

import torch

from components.errors import InvalidInput
from components.settings import BaseSettings


def device_of(settings: BaseSettings) -> torch.device:
    """The device that the settings ask for; `auto` is a GPU where there is one.

    Raises:
        InvalidInput: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InvalidInput("no CUDA device", field="base.device", mend="set base.device to auto or cpu")
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # set by the launchers, one process per GPU


def gpus_of(settings: BaseSettings) -> int:
    """GPUs that this process and its peers use: one each, or none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if device_of(settings).type == "cuda" else 0
