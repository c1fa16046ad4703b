"""What the training loop has to know of a training: what trains, by which loss, on what, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from components.learning.cache import ConditionedBatch, EncodedConcept
from components.learning.flow_matching import FlowSample
from components.learning.guidance_bank import GuidanceBank
from components.learning_settings import LearningSettings


@dataclass(frozen=True)
class StepLoss:
    """What a step minimises, and its metrics: scalar tensors without gradient, under the keys of the design."""

    total: Tensor
    metrics: Mapping[str, Tensor]


Loss = Callable[[FlowSample, ConditionedBatch], StepLoss]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        first_step: steps before they train.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    first_step: int = 0


@dataclass(frozen=True)
class Training:
    """Everything the loop has to know of a stage.

    Attributes:
        stage: its name; part of every seed.
        key: digest of all inputs and settings; a checkpoint with another key is refused.
        groups: exactly what trains.
        shift: timestep shift of the base's scheduler.
        save: writes the adapter under its final name, given the folder.
        preview: writes an image of the current adapter to a file; None: no previews.
        bank: the points that steps draw from; None: every step draws its own.
    """

    stage: str
    key: str
    steps: int
    warmup_steps: int
    seed: int
    shift: float
    device: torch.device
    settings: LearningSettings
    groups: Sequence[ParameterGroup]
    encoded: EncodedConcept
    loss: Loss
    save: Callable[[Path], None]
    preview: Callable[[Path], None] | None = None
    bank: GuidanceBank | None = None
