"""The one training loop, for both stages and every method.

A step draws references, t and noise from (seed, stage, step) alone, so that a training killed at any moment goes on
from its last checkpoint and ends bit-identical to an unbroken one (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from components.errors import InvalidInput, TrainingDiverged
from components.learning.cache import ConditionedBatch
from components.learning.checkpoints import Checkpoint, Checkpoints
from components.learning.flow_matching import FlowSample, interpolate, sample_times
from components.learning.history import History
from components.learning.moving_average import MovingAverage
from components.learning.offload import activations_on_host
from components.learning.randomness import draw_references, generator
from components.learning.tracker import NullTracker, Tracker
from components.learning.training import Training

logger = logging.getLogger(__name__)


def accelerator_for(device: torch.device, mixed_precision: str) -> Accelerator:
    """An accelerator with this precision, also where the process has used another one before."""
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu")


def train(training: Training, work_dir: Path, tracker: Tracker) -> None:
    """Train to the last step, from the last checkpoint below `work_dir` if there is one.

    Writes `history.jsonl`, `checkpoints/`, `previews/`, `snapshots/` below `work_dir`, and the adapter to
    `work_dir/adapter`.

    Raises:
        TrainingDiverged: a loss or gradient is not finite; the last good checkpoint is kept and named.
        InvalidInput: the checkpoint found belongs to another training; the batch cannot be spread over the processes.
    """
    loop = _Loop(training, work_dir, tracker)
    try:
        loop.run()
    finally:
        tracker.flush()


class _Loop:
    def __init__(self, training: Training, work_dir: Path, tracker: Tracker):
        self.training, self.work_dir, self.tracker = training, work_dir, tracker
        self.accelerator = accelerator_for(training.device, training.settings.mixed_precision)
        self.parameters: dict[str, nn.Parameter] = {
            f"{group.name}.{name}": value for group in training.groups for name, value in group.parameters.items()
        }
        self._enable(1)
        self.adam = torch.optim.AdamW(
            [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in training.groups],
            weight_decay=0.0,  # a few hundred steps on a few images: what confines the adapter is the objective
            fused=True,  # hundreds of small tensors
        )
        self.optimizer = self.accelerator.prepare(self.adam)
        self.average = MovingAverage(self.parameters, training.settings.ema_decay)
        self.checkpoints = Checkpoints(work_dir / "checkpoints", training.key)
        with self.accelerator.main_process_first():
            self.step = self._resume()
        if training.settings.batch_size % self.accelerator.num_processes:
            raise InvalidInput(
                f"a batch of {training.settings.batch_size} cannot be spread over {self.accelerator.num_processes} "
                "processes",
                field="learning.batch_size",
                mend="take a multiple of the number of processes",
            )
        self.main = self.accelerator.is_main_process
        rank = self.accelerator.process_index
        records, sink = (work_dir, tracker) if self.main else (work_dir / "ranks" / str(rank), NullTracker())
        self.history = History(records / "history.jsonl", sink, steps_kept=self.step)

    def run(self) -> None:
        settings, last = self.training.settings, self.training.steps
        try:
            if self.training.bank is not None and self.step < last:
                with self.accelerator.autocast():
                    self.training.bank.fill()
            while self.step < last:
                self.step += 1
                metrics = self._step()
                self.history.add(self.step, metrics)
                keep = self.step % settings.checkpoint_every == 0 or self.step == last
                look = settings.preview_every > 0 and self.step % settings.preview_every == 0
                snapshot = self.step in settings.snapshot_steps
                if keep or look or snapshot or self.history.due:
                    self._flush()  # before anything is kept: it finds what is not finite
                if self.main:
                    with self.average.applied():
                        if snapshot:
                            self.training.save(self.work_dir / "snapshots" / str(self.step))
                        if look and self.training.preview is not None:
                            self._preview(self.training.preview)
                    if keep:
                        self._save()
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
        if self.main:
            with self.average.applied():
                self.training.save(self.work_dir / "adapter")
        self.accelerator.wait_for_everyone()

    def _enable(self, step: int) -> None:
        """Let the groups train whose time has come."""
        for group in self.training.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(step > group.first_step)

    def _step(self) -> dict[str, Tensor]:
        """One optimizer step; its metrics, still on the device."""
        training, settings = self.training, self.training.settings
        self._enable(self.step)
        warmup = min(1.0, self.step / training.warmup_steps) if training.warmup_steps else 1.0
        for group, options in zip(training.groups, self.adam.param_groups, strict=True):
            options["lr"] = group.learning_rate * warmup
        parts = []
        for micro in range(settings.gradient_accumulation):
            flow, batch = self._draw(micro)
            with self.accelerator.autocast(), activations_on_host(settings.offload_activations):
                loss = training.loss(flow, batch)
            self.accelerator.backward(loss.total / settings.gradient_accumulation)
            parts.append(loss.metrics)
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.step)
        metrics = {key: _reduce(key, torch.stack([part[key].detach() for part in parts])) for key in parts[0]}
        if not (self.accelerator.scaler is not None and self.accelerator.optimizer_step_was_skipped):
            metrics["grad_norm"] = torch.as_tensor(norm).detach()
        else:  # the gradient scaler met an overflow and took a smaller scale: no step, no failure
            metrics["grad_norm"] = torch.zeros((), device=training.device)
        metrics["lr"] = torch.tensor(self.adam.param_groups[0]["lr"], dtype=torch.float64, device=training.device)
        return metrics

    def _draw(self, micro: int) -> tuple[FlowSample, ConditionedBatch]:
        training, settings = self.training, self.training.settings
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # Every process draws the whole batch and takes its part: the result does not depend on their number.
        whole, share = settings.batch_size, settings.batch_size // world
        own = slice(rank * share, (rank + 1) * share)
        number = (self.step - 1) * settings.gradient_accumulation + micro
        references = draw_references(
            whole,
            total=len(training.encoded.digests),
            start=number * whole,
            seed=training.seed,
            stage=training.stage,
        )
        random = generator(training.seed, training.stage, "step", self.step, micro, 0)
        if training.bank is not None:
            draws = torch.randint(training.bank.draws, (whole,), generator=random)[own]
            flow, batch = training.bank.draw(references[own], draws.tolist())
            return flow, replace(batch, random=self._own(random, micro))
        batch = training.encoded.batch(references[own])
        t_B = sample_times(
            whole,
            generator=random,
            mean=settings.logit_mean,
            std=settings.logit_std,
            shift=training.shift,
        )[own]
        x_1_BCHW = torch.randn((whole, *batch.x_0_BCHW.shape[1:]), generator=random)[own]
        flow = interpolate(batch.x_0_BCHW, x_1_BCHW.to(training.device), t_B.to(training.device))
        return flow, replace(batch, random=self._own(random, micro))

    def _own(self, random: torch.Generator, micro: int) -> torch.Generator:
        """What a loss draws besides is each process's own."""
        rank = self.accelerator.process_index
        if rank == 0:
            return random
        return generator(self.training.seed, self.training.stage, "step", self.step, micro, rank)

    def _flush(self) -> None:
        bad = self.history.flush({"memory/peak_mib": _peak_memory(self.training.device)})
        if bad is not None:
            kept = self.checkpoints.latest()
            raise TrainingDiverged(
                f"{self.training.stage}: {bad[1]} is not finite at step {bad[0]}; the last good checkpoint is "
                + (f"step {kept.step} in {self.checkpoints.folder}" if kept else "none: it failed before the first")
            )

    def _preview(self, preview: Callable[[Path], None]) -> None:
        file = self.work_dir / "previews" / f"{self.step:06d}.png"
        preview(file)
        self.tracker.log_image(f"previews/{self.step:06d}.png", file)

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"parameter.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        for name, value in self.parameters.items():
            for field, moment in self.adam.state[value].items():
                tensors[f"adam.{field}.{name}"] = moment
        scaler = self.accelerator.scaler
        self.checkpoints.save(Checkpoint(self.step, tensors, scaler.state_dict() if scaler is not None else {}))

    @torch.no_grad()
    def _resume(self) -> int:
        """Load the newest checkpoint and return its step, 0 if there is none."""
        found = self.checkpoints.latest()
        if found is None:
            return 0
        for name, value in self.parameters.items():
            value.copy_(found.tensors[f"parameter.{name}"])
            if f"adam.step.{name}" in found.tensors:  # not where it has not trained yet
                self.adam.state[value] = {
                    field: found.tensors[f"adam.{field}.{name}"].to(value.device)
                    for field in ("step", "exp_avg", "exp_avg_sq")
                }
        for name, average in self.average.values.items():
            average.copy_(found.tensors[f"average.{name}"])
        if self.accelerator.scaler is not None and found.scaler:
            self.accelerator.scaler.load_state_dict(dict(found.scaler))
        logger.info("%s goes on from step %d", self.training.stage, found.step)
        return found.step


def _reduce(key: str, values: Tensor) -> Tensor:
    """One value from those of the accumulated batches."""
    if key.endswith("/min"):
        return values.min()
    return values.max() if key.endswith("/max") else values.mean()


def _peak_memory(device: torch.device) -> float:
    """MiB: of the device's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
