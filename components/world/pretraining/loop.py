"""The loop that pre-trains every part of the family: seeded by step, resumable, one or several processes.

`torchrun --nproc_per_node 2` (or `accelerate launch` on GPUs) spreads a step's batch over processes; each draws its own
share from (seed, step, rank), so a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.files import atomic_file
from components.learning.loop import accelerator_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """One part's training.

    Attributes:
        batch_size: samples of one process and step.
        learning_rate: of AdamW, and of Muon (its update scaled to AdamW's root mean square).
        decay_from: share of the steps after which the rate falls linearly to zero.
        muon: names of parameters that hold one of these texts and are matrices are trained by Muon; () for none.
        average_decay: of the exponential moving average of the weights, which is what is kept; None for none.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 50
    decay_from: float = 0.3
    weight_decay: float = 0.01
    muon: tuple[str, ...] = ()
    average_decay: float | None = 0.995
    mixed_precision: str = "bf16"
    checkpoint_every: int = 100
    log_every: int = 10


class Objective(nn.Module):
    """A model with the loss that trains it."""

    def batch(self, rng: np.random.Generator, size: int, step: int) -> Mapping[str, Any]:
        """Draw one process's share of a step."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalars, of which "loss" is minimised."""
        raise NotImplementedError


def _optimizers(objective: nn.Module, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        by_muon = parameter.ndim == 2 and any(text in name for text in settings.muon)
        (matrices if by_muon else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
        )
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def _rate(step: int, settings: LoopSettings) -> float:
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    start = settings.decay_from * settings.steps
    decay = 1.0 if step < start else max(0.0, (settings.steps - step) / (settings.steps - start))
    return settings.learning_rate * warm * decay


def _flatten(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    flat = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                flat[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).clone()
    return flat


def _restore(optimizers: list[torch.optim.Optimizer], flat: Mapping[str, Tensor]) -> None:
    for number, optimizer in enumerate(optimizers):
        content = optimizer.state_dict()
        for key, value in flat.items():
            _, which, index, name = key.split(".", 3)
            if int(which) == number:
                content["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(content)


def _seed(seed: int, step: int, rank: int) -> np.random.Generator:
    return np.random.default_rng((seed, step, rank))


def train(objective: Objective, settings: LoopSettings, *, folder: Path, seed: int) -> Objective:
    """Train, or go on from the checkpoint under `folder`; return the objective with the (averaged) trained weights.

    Writes `folder/checkpoint.safetensors` and `folder/history.jsonl`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accelerator = accelerator_for(device, settings.mixed_precision)
    objective.to(accelerator.device).train()
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    optimizers = _optimizers(objective, settings)
    average = {name: value.detach().clone() for name, value in trained.items()}
    checkpoint, history = folder / "checkpoint.safetensors", folder / "history.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    if checkpoint.is_file():
        saved = load_file(checkpoint)
        start = int(saved.pop("step"))
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(saved[f"model.{name}"])
                average[name].copy_(saved[f"average.{name}"])
        _restore(optimizers, {key: value for key, value in saved.items() if key.startswith("optimizer.")})
        logger.info("resumed at step %d of %d", start, settings.steps)
    records = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    records = [record for record in records if record["step"] < start]
    wrapped = accelerator.prepare(objective)
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    began = time.perf_counter()

    def save(step: int) -> None:
        if not accelerator.is_main_process:
            return
        content = {f"model.{name}": value.detach().cpu().contiguous() for name, value in trained.items()}
        content |= {f"average.{name}": value.cpu().contiguous() for name, value in average.items()}
        content |= _flatten([getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers])
        content["step"] = torch.tensor(step)
        with atomic_file(checkpoint) as temporary:
            save_file(content, temporary)
        with atomic_file(history) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))

    for step in range(start, settings.steps):
        rng = _seed(seed, step, accelerator.process_index)
        torch.manual_seed(int(rng.integers(2**62)))
        batch = objective.batch(rng, settings.batch_size, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, settings)
            optimizer.zero_grad()
        with accelerator.autocast():
            results = wrapped(batch)
        accelerator.backward(results["loss"])
        norm = accelerator.clip_grad_norm_(trained.values(), 1.0)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"{folder.name}: gradient of norm {float(norm)} at step {step}")
        for optimizer in optimizers:
            optimizer.step()
        decay = min(settings.average_decay or 0.0, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [value.detach() for value in trained.values()], 1 - decay)
        if step % settings.log_every == 0 or step + 1 == settings.steps:
            shown = {name: float(value.detach()) for name, value in results.items()}
            seconds = (time.perf_counter() - began) / (step + 1 - start)
            records.append({"step": step, **shown, "grad_norm": float(norm)})
            if accelerator.is_main_process:
                logger.info(
                    "%s step %d/%d %s %.2f s a step, %.0f min left",
                    folder.name,
                    step,
                    settings.steps,
                    " ".join(f"{name} {value:.4f}" for name, value in shown.items()),
                    seconds,
                    seconds * (settings.steps - step) / 60,
                )
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            save(step + 1)
            accelerator.wait_for_everyone()
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(average[name])
    return objective.eval()
