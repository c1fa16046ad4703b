"""Pictures by ONNX Runtime beside torch's: the adapter folded into the graph, and put in at run time."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from measuring import Row, clock, interleaved, rows
from training import COMPLETE, Bench

from components.errors import InvalidInput
from components.export.onnx_adapters import export_onnx_adapter, export_onnx_base
from components.export.onnx_folder import export_onnx
from components.export.onnx_sampler import OnnxSampler
from components.files import atomic_folder
from components.settings import Profile

TORCH = "torch"


def measure(folder: Path, profile: Profile, rounds: int, least: float) -> list[Row]:
    """Whole pictures, texts encoded and decoded, on the same prompts, seeds and settings; and the two exports."""
    bench = Bench(folder, profile)
    backbone, sampling = bench.backbone, profile.evaluation.sampling
    bench.adapters(bench.batch())
    drawing = {"steps": sampling.steps, "guidance_scale": sampling.guidance_scale}
    adapter, folded, base, at_run_time = (folder / name for name in ("adapter", "folded", "onnx-base", "onnx-adapter"))
    with atomic_folder(adapter) as partial:
        backbone.save_adapter("pure", partial)
    try:
        begun = time.perf_counter()
        export_onnx(backbone, "pure", folded, drawing)
        exported = time.perf_counter()
        export_onnx_base(backbone, base, drawing)
        ended = time.perf_counter()
    except InvalidInput as error:  # not installed, or a base in bfloat16
        print(f"ONNX is not measured: {error}", file=sys.stderr)
        return []
    export_onnx_adapter(adapter, at_run_time)
    alone, shared = OnnxSampler(folded), OnnxSampler(base)
    concept = shared.load_adapter(at_run_time)
    prompt = COMPLETE.replace("[V]", f"<{concept}>")

    def by_torch(size: int) -> None:
        texts = backbone.encode_text([COMPLETE] * size), backbone.encode_text([""] * size)
        backbone.sample(*texts, seeds=range(size), adapter="pure", **drawing)

    def by_onnx(sampler: OnnxSampler, size: int, name: str | None) -> None:
        sampler.sample([prompt] * size, range(size), adapter=name)

    found = []
    provider = alone.providers[0]
    for size in sorted({1, sampling.batch_size}):
        against = f"{TORCH}, batch {size}"
        cases = {
            against: functools.partial(by_torch, size),
            f"folded, batch {size}": functools.partial(by_onnx, alone, size, None),
            f"adapter at run time, batch {size}": functools.partial(by_onnx, shared, size, concept),
        }
        seconds = interleaved(cases, rounds, clock(backbone.device), least=least)
        notes = {name: provider for name in cases if name != against}
        found += rows("ONNX Runtime", seconds, against, items=dict.fromkeys(cases, size), notes=notes)
    return [
        *found,
        Row("ONNX Runtime", "export, folded", exported - begun, "s", note="wall-clock"),
        Row("ONNX Runtime", "export of a base for adapters", ended - exported, "s", note="wall-clock"),
    ]
