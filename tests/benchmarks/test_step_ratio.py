"""What a stage-2 step costs beside a plain LoRA step: printed, never asserted.

The floor counts forward passes of one sample, a pass with gradient as two: a plain LoRA step has 2; a stage-2 step has
5 (`frozen`, `detached`: two of the extractor, one of v_orig, one with gradient) or 6 (`trainable`).

    make bench                                   the size of the shipped family, untrained, on this machine
    make bench BENCH_ROUNDS=5                    in a hurry
    make bench BENCH_BASE=/path/to/base BENCH_PROFILE=sd35-medium
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import interpolate
from components.learning.losses import flow_matching_loss
from components.learning.methods.purecc import pure_learning_loss
from components.learning.training import Loss
from components.settings import Profile, load_profile
from components.world.family import create_untrained

ROUNDS, WARM_UP = int(os.environ.get("BENCH_ROUNDS", "20")), 2
FLOOR = {"frozen": 5 / 2, "detached": 5 / 2, "trainable": 6 / 2}


def batch_for(backbone: SD3Backbone, size: int) -> ConditionedBatch:
    """Random latents with texts of a concept; the cost of a step does not depend on what is drawn."""

    def encoded(text: str) -> TextEncoding:
        return backbone.encode_text([text] * size)

    latents = torch.randn(size, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    return ConditionedBatch(
        x_0_BCHW=latents.to(backbone.device),
        complete=encoded("a [V] star on the left, brick background"),
        base=encoded("a star on the left, brick background"),
        target=encoded("[V] star"),
        class_text=encoded("star"),
        null=encoded(""),
    )


def stopwatch(device: torch.device) -> Callable[[], float]:
    """Seconds of this process on the CPU, which other processes do not lengthen; wall-clock on a GPU."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def step_seconds(backbone: SD3Backbone, losses: dict[str, Loss], batch: ConditionedBatch) -> dict[str, list[float]]:
    """Seconds of forward and backward of each loss; the losses take turns, so that a slow minute hits all alike."""
    now = stopwatch(backbone.device)
    parameters = [p.requires_grad_(True) for kind in backbone.parameters("pure").values() for p in kind.values()]
    noise = torch.randn_like(batch.x_0_BCHW)
    times = torch.rand(len(noise), device=noise.device)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(WARM_UP + ROUNDS):
        for name, loss in losses.items():
            start = now()
            loss(interpolate(batch.x_0_BCHW, noise, times), batch).total.backward()
            if number >= WARM_UP:
                seconds[name].append(now() - start)
            for parameter in parameters:
                parameter.grad = None
    return seconds


def load(folder: Path) -> tuple[SD3Backbone, Profile]:
    base = os.environ.get("BENCH_BASE")
    if not base:
        base = str(folder / "base")
        create_untrained(Path(base), size="tiny", seed=0)
    profile = load_profile(os.environ.get("BENCH_PROFILE", "tiny"), [f"base.path={base}"])
    return SD3Backbone.load(profile.base), profile


def test_step_ratio(tmp_path: Path) -> None:
    backbone, profile = load(tmp_path)
    learning = profile.learning
    batch = batch_for(backbone, learning.batch_size)
    backbone.free("text", "vae")
    embeddings_NRD = backbone.measure_context_rows(batch.complete, batch.x_0_BCHW, seed=0)
    kinds = learning.extractor.trains.split("+")
    lora = learning.lora if "lora" in kinds else None
    backbone.create_adapter("extractor", concept="x", lora=lora, embeddings_NRD=embeddings_NRD, seed=0)
    backbone.create_adapter("pure", concept="x", lora=learning.lora, embeddings_NRD=embeddings_NRD, seed=1)
    losses: dict[str, Loss] = {"plain LoRA": flow_matching_loss(backbone, "pure")}
    for original in FLOOR:
        settings = learning.model_copy(update={"original": original})
        losses[original] = pure_learning_loss(backbone, "pure", "extractor", settings)

    seconds = step_seconds(backbone, losses, batch)

    plain = statistics.median(seconds["plain LoRA"])
    print(f"\n{profile.base.path} on {backbone.device}, batch {learning.batch_size}, median of {ROUNDS} steps")
    print(f"{'step':12} {'ms':>8} {'ratio':>7} {'floor':>7} {'above floor':>12}")
    for name, values in seconds.items():
        median = statistics.median(values)
        floor = FLOOR.get(name, 1.0)
        print(f"{name:12} {1000 * median:8.1f} {median / plain:7.2f} {floor:7.2f} {median / plain / floor - 1:12.0%}")
