"""A step of each stage and mode beside a plain LoRA step, and beside a loop written as training scripts are.

The floor counts forward passes of one sample, a pass with gradient as two: a plain LoRA step has 2; a stage-2 step has
5 (`frozen`, `detached`: two of the extractor, one of v_orig, one with gradient) or 6 (`trainable`). DOP beside a frozen
v_orig, which it shares, has one more with gradient: 7.

The script-style loops are our own plain re-creation, made to be compared with: the whole pipeline stays in memory,
images and texts are encoded in every step, every forward pass is a call of its own, stage 2 holds a second transformer
for the extractor, the optimizer is not fused and the loss is read back every step. What is computed is the same, and
by the same formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Case, Row, clock, interleaved, resident_mib, rows
from torch import Tensor, nn

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import interpolate
from components.learning.losses import flow_matching_loss
from components.learning.methods.purecc import pure_learning_loss
from components.learning.objective import guide, squared_error
from components.learning.training import Loss
from components.settings import Profile

PLAIN = "plain LoRA"
STAGE_1 = "stage 1 (extractor)"
MODES = {"frozen": 5 / 2, "detached": 5 / 2, "trainable": 6 / 2}
WITH_DOP, WITH_DOP_FLOOR = "stage 2, frozen, with DOP", 7 / 2
SCRIPT_PLAIN, SCRIPT_PURE = "script-style LoRA", "script-style stage 2"
COMPLETE, BASE, TARGET, CLASS = (
    "a [V] star on the left, brick background",
    "a star on the left, brick background",
    ("[V] star"),
    "star",
)


@dataclass
class Bench:
    """One base with its adapters, and the batch that every step is about."""

    folder: Path
    profile: Profile

    def __post_init__(self) -> None:
        self.backbone = SD3Backbone.load(self.profile.base)
        self.size = self.profile.learning.batch_size
        side = self.profile.base.resolution
        generator = torch.Generator().manual_seed(0)
        self.images_BCHW = (torch.rand(self.size, 3, side, side, generator=generator) * 2 - 1).to(self.backbone.device)

    def autocast(self) -> torch.autocast:
        """The precision in which the project's loop computes a loss."""
        wanted = self.profile.learning.mixed_precision
        dtype = torch.float16 if wanted == "fp16" else torch.bfloat16
        return torch.autocast(self.backbone.device.type, dtype, enabled=wanted != "no")

    def batch(self) -> ConditionedBatch:
        def encoded(text: str) -> TextEncoding:
            return self.backbone.encode_text([text] * self.size)

        return ConditionedBatch(
            x_0_BCHW=self.backbone.encode_image(self.images_BCHW),
            complete=encoded(COMPLETE),
            base=encoded(BASE),
            target=encoded(TARGET),
            class_text=encoded(CLASS),
            null=encoded(""),
        )

    def adapters(self, batch: ConditionedBatch) -> None:
        learning = self.profile.learning
        rows_NRD = self.backbone.measure_context_rows(batch.complete, batch.x_0_BCHW, seed=0)
        kinds = learning.extractor.trains.split("+")
        make = self.backbone.create_adapter
        make("extractor", concept="x", lora=learning.lora if "lora" in kinds else None, embeddings_NRD=rows_NRD, seed=0)
        make("pure", concept="x", lora=learning.lora, embeddings_NRD=rows_NRD, seed=1)
        make("lora", concept="x", lora=learning.lora, embeddings_NRD=None, seed=2)


def ours(bench: Bench) -> dict[str, Case]:
    """Steps of the project's loop: what is fixed is encoded once, encoders and autoencoder are gone."""
    batch = bench.batch()
    bench.backbone.free("text", "vae")
    bench.adapters(batch)
    learning, backbone = bench.profile.learning, bench.backbone
    cases = {
        PLAIN: step_of(bench, "lora", flow_matching_loss(backbone, "lora"), batch),
        STAGE_1: step_of(bench, "extractor", flow_matching_loss(backbone, "extractor"), batch),
    }
    stages = {f"stage 2, {mode}": {"original": mode, "dop_weight": None} for mode in MODES}
    stages[WITH_DOP] = {"original": "frozen", "dop_weight": 1.0}
    for name, update in stages.items():
        settings = learning.model_copy(update=update)
        loss = pure_learning_loss(backbone, "pure", "extractor", settings)
        cases[name] = step_of(bench, "pure", loss, batch)
    return cases


def step_of(bench: Bench, adapter: str, loss: Loss, batch: ConditionedBatch) -> Case:
    """An optimizer step as the project's loop does it."""
    backbone = bench.backbone
    parameters = [value for kind in backbone.parameters(adapter).values() for value in kind.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)
    noise_BCHW = torch.empty_like(batch.x_0_BCHW)

    def step() -> None:
        for parameter in parameters:  # adapters share the base: only the one that learns has gradients
            parameter.requires_grad_(True)
        t_B = torch.rand(len(noise_BCHW), device=noise_BCHW.device)
        with bench.autocast():
            found = loss(interpolate(batch.x_0_BCHW, noise_BCHW.normal_(), t_B), batch)
        found.total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for parameter in parameters:
            parameter.requires_grad_(False)

    return step


def script_style(bench: Bench, *, pure: bool) -> Case:
    """A step as scripts write it; with `pure` that of stage 2, its extractor in a second model."""
    student = bench.backbone
    batch = bench.batch()
    bench.adapters(batch)
    adapter = "pure" if pure else "lora"
    teacher = None
    if pure:
        other = Bench(bench.folder, bench.profile)
        other.adapters(other.batch())
        teacher = other.backbone
    parameters = [value for kind in student.parameters(adapter).values() for value in kind.values()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)
    eta = bench.profile.learning.eta

    def step() -> None:
        x_0_BCHW = student.encode_image(bench.images_BCHW)

        def encoded(model: SD3Backbone, text: str) -> TextEncoding:
            return model.encode_text([text] * bench.size)

        t_B = torch.rand(bench.size, device=x_0_BCHW.device)
        flow = interpolate(x_0_BCHW, torch.randn_like(x_0_BCHW), t_B)

        def velocity(model: SD3Backbone, text: str, which: str) -> Tensor:
            with bench.autocast():
                return model.velocity(flow.x_t_BCHW, flow.t_B, encoded(model, text), which)

        learned_BCHW = velocity(student, COMPLETE, adapter)
        loss = squared_error(learned_BCHW, flow.target_BCHW)
        if teacher is not None:
            with torch.no_grad():
                guidance_BCHW = velocity(teacher, TARGET, "extractor") - velocity(teacher, "", "extractor")
            original_BCHW = velocity(student, BASE, adapter)
            loss = loss + eta * squared_error(
                learned_BCHW, guide(learned_BCHW, original_BCHW, guidance_BCHW).target_BCHW
            )
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def cases_of(folder: Path, profile: Profile) -> dict[str, Callable[[], Case]]:
    """Name -> makes the step, alone in its process: for its memory."""

    def own(name: str) -> Callable[[], Case]:
        return lambda: ours(Bench(folder, profile))[name]

    names = [PLAIN, STAGE_1, *(f"stage 2, {mode}" for mode in MODES), WITH_DOP]
    return {
        **{name: own(name) for name in names},
        SCRIPT_PLAIN: lambda: script_style(Bench(folder, profile), pure=False),
        SCRIPT_PURE: lambda: script_style(Bench(folder, profile), pure=True),
    }


def measure(folder: Path, profile: Profile, rounds: int) -> list[Row]:
    """All steps side by side."""
    bench = Bench(folder, profile)
    cases = ours(bench)
    cases[SCRIPT_PLAIN] = script_style(Bench(folder, profile), pure=False)
    cases[SCRIPT_PURE] = script_style(Bench(folder, profile), pure=True)
    seconds = interleaved(cases, rounds, clock(bench.backbone.device), warm_up=2)
    floors = {f"stage 2, {mode}": floor for mode, floor in MODES.items()}
    floors |= {PLAIN: 1.0, WITH_DOP: WITH_DOP_FLOOR}
    notes = dict.fromkeys((SCRIPT_PLAIN, SCRIPT_PURE), "our re-creation of a script's loop")
    found = rows("training step", seconds, PLAIN, floors=floors, items=bench.size, notes=notes)
    for mode in ("trainable", "frozen"):  # the released code's mode, and the default's without its DOP
        own = f"stage 2, {mode}"
        found += rows("against the script-style loop", {own: seconds[own], SCRIPT_PURE: seconds[SCRIPT_PURE]}, own)[1:]
    return found


def memory(folder: Path, profile: Profile, name: str) -> float:
    """MiB at the peak of loading and three steps: of the GPU's allocator, or of a fresh process beyond its imports."""
    device = torch.device("cuda" if profile.base.device != "cpu" and torch.cuda.is_available() else "cpu")
    make = cases_of(folder, profile)[name]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = resident_mib(peak=False)
    step = make()
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident_mib(peak=True) - before
