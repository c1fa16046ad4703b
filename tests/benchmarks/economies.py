"""What the settings that trade time and memory cost in a stage-2 step, beside the plain one."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import training
from measuring import Case, Row, clock, interleaved, rows
from training import Bench

from components.backbones.economies import economies
from components.learning.methods.purecc import pure_learning_loss
from components.learning.offload import activations_on_host
from components.settings import Profile

STEP, COMPILED = "stage 2, frozen", "compiled"


def measure(folder: Path, profile: Profile, rounds: int, *, compile_: bool = True) -> list[Row]:
    """Each setting on a base of its own, in turns; torch.compile with its warm-up as a row."""
    with ExitStack() as stack:
        first = Bench(folder, profile)
        now = clock(first.backbone.device)

        def own(*, checkpointing: bool = False, compile_: bool = False, int8: bool = False) -> Case:
            bench = Bench(folder, profile)
            case = training.ours(bench)[STEP]
            way = economies(bench.backbone.adapted, checkpointing=checkpointing, compile_=compile_, int8=int8)
            stack.enter_context(way)
            return case

        plain = own()

        def on_host() -> None:
            with activations_on_host():
                plain()

        cases: dict[str, Case] = {
            STEP: plain,
            "gradient checkpointing": own(checkpointing=True),
            "activations on the host": on_host,
            "guidance bank": banked(first),
        }
        found = []
        if importlib.util.find_spec("torchao") is None:
            print("no torchao: the price of quantize_base is not measured", file=sys.stderr)
        else:
            cases["int8 base"] = own(int8=True)
        if compile_ and (first.backbone.device.type == "cuda" or shutil.which("g++")):
            cases[COMPILED] = own(compile_=True)
            start = now()
            for _ in range(3):  # also with other batches of references: after the third nothing is compiled any more
                cases[COMPILED]()
            warm_up = now() - start
        seconds = interleaved(cases, rounds, now)
        found = rows("settings", seconds, STEP, notes={"guidance bank": "once it is filled"})
        if COMPILED in cases:
            saved = statistics.median(seconds[STEP]) - statistics.median(seconds[COMPILED])
            pays = f"pays after {warm_up / saved:.0f} steps" if saved > 0 else "never pays here"
            found.append(Row("settings", "warm-up of compiled", warm_up, "s", note=pays))
        return found


def banked(bench: Bench) -> Case:
    """A step whose guidance and v_orig are there already."""
    batch = bench.batch()
    bench.backbone.free("text", "vae")
    bench.adapters(batch)
    settings = bench.profile.learning.model_copy(update={"original": "frozen", "dop_weight": None})
    fixed = (torch.randn_like(batch.x_0_BCHW), torch.randn_like(batch.x_0_BCHW))
    loss = pure_learning_loss(bench.backbone, "pure", "extractor", settings)
    return training.step_of(bench, "pure", loss, replace(batch, fixed=fixed))
