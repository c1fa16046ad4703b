"""Stable Diffusion 3.5 Medium on a GPU: its true architecture with random weights, on the project's own backbone.

    make bench-gpu                                          1024 and 512 px, batch 1, 2 and 4
    make bench-gpu BENCH="--resolutions 1024 --batches 2"
    make bench-gpu BENCH="--miniature"                      on a model of a few thousand weights: does it run?

Random weights cost what trained ones cost. Text encodings are random, too, of the true shape: encoders and autoencoder
are not in memory while the project trains. Prints tables and writes them to `.purecc/bench/gpu-<time>.json` (or --out),
the profiler's full table beside it. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "benchmarks")]

import sd35  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402
from architecture import (  # noqa: E402
    FROZEN,
    FULL,
    SMALL,
    RandomBench,
    create,
    matrix_rate,
    parameters_of,
    profile_of,
    tera_flop,
)
from gpu_table import BATCHES, DRAWN, RESOLUTIONS, VARIANTS, Cell, planned, show, targets  # noqa: E402
from kernels import where_time_goes  # noqa: E402
from measuring import Case, clock, interleaved, machine  # noqa: E402
from training import PLAIN, Bench  # noqa: E402

import components.quiet  # noqa: E402, F401  (before every dependency)
from components.backbones.device import device_of  # noqa: E402
from components.backbones.economies import economies  # noqa: E402
from components.backbones.flops import FORMULA, tokens_of, work_of  # noqa: E402
from components.files import write_json, write_text  # noqa: E402
from components.learning.offload import activations_on_host  # noqa: E402


def settings_of(bench: Bench, variant: str) -> AbstractContextManager[None]:
    """The settings of a variant, while it is measured."""
    adapted = bench.backbone.adapted
    return {
        "none": lambda: economies(adapted),
        "checkpointing": lambda: economies(adapted, checkpointing=True),
        "activations on the host": activations_on_host,
        "int8 base": lambda: economies(adapted, int8=True),
        "compiled": lambda: economies(adapted, compile_=True),
    }[variant]()


def available(miniature: bool) -> list[str]:
    """The variants that can be measured here; a miniature is not compiled, which would take minutes."""
    missing = {"compiled"} if miniature else set()
    if importlib.util.find_spec("torchao") is None:
        missing.add("int8 base")
    return [variant for variant in VARIANTS if variant not in missing]


def peak_gb(device: torch.device, case: Case) -> float | None:
    """The most that the device's allocator held over two steps; None on the CPU."""
    if device.type != "cuda":
        case()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        case()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e9


def _forget_gradients(bench: Bench) -> None:
    """What a step that ran out of memory left behind."""
    for adapter in bench.backbone.adapted.names:
        for values in bench.backbone.parameters(adapter).values():
            for parameter in values.values():
                parameter.grad = None
                parameter.requires_grad_(False)


def measure_steps(bench: Bench, variant: str, rounds: int, rate: float) -> list[Cell]:
    """All cases of one resolution, batch and variant, in turns."""
    device, resolution = bench.backbone.device, bench.profile.base.resolution
    now = clock(device)
    cells: dict[str, Cell] = {}
    for name in list(bench.backbone.adapted.names):
        bench.backbone.remove_adapter(name)
    with settings_of(bench, variant):
        cases = dict(training.ours(bench))
        for name in list(cases):
            cells[name] = Cell(resolution, bench.size, variant, name, tera_flop=tera_flop(bench, name), note="")
            try:
                cells[name] = replace(cells[name], peak_gb=peak_gb(device, cases[name]))
            except torch.OutOfMemoryError:
                cells[name] = replace(cells[name], note="out of memory")
                del cases[name]
                _forget_gradients(bench)
        seconds = interleaved(cases, rounds, now, warm_up=1) if cases else {}
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = None
        if PLAIN in seconds:
            ratio = statistics.median(own / plain for own, plain in zip(values, seconds[PLAIN], strict=True))
        cells[name] = replace(
            cells[name],
            milliseconds=1000 * median,
            ratio=ratio,
            utilisation=1e12 * tera_flop(bench, name) / median / rate,
        )
    return list(cells.values())


def measure_sampling(bench: RandomBench, batches: list[int], rounds: int, rate: float) -> list[dict[str, Any]]:
    """Images a second, the autoencoder included; the transformer's share of the operations alone is counted."""
    backbone, sampling = bench.backbone, bench.profile.evaluation.sampling
    config = backbone.transformer.config
    _, height, width = backbone.latent_shape
    tokens = {"image_tokens": tokens_of(config, height, width), "context_tokens": sd35.CLIP_ROWS + sd35.T5_ROWS}
    rank = bench.profile.learning.lora.rank

    def draw(batch: int, adapter: str | None) -> None:
        backbone.sample(
            bench.encoding(batch, mentions=adapter is not None),
            bench.encoding(1, mentions=False),
            seeds=range(batch),
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            adapter=adapter,
        )

    names = dict(zip(DRAWN, (None, "pure"), strict=True))
    cases = {
        (name, batch): (lambda batch=batch, adapter=adapter: draw(batch, adapter))
        for batch in batches
        for name, adapter in names.items()
    }
    seconds = interleaved({str(key): case for key, case in cases.items()}, rounds, clock(backbone.device))
    found = []
    for name, batch in cases:
        median = statistics.median(seconds[str((name, batch))])
        flop = 2 * sampling.steps * batch * work_of(config, **tokens, rank=rank if name != "base" else 0).forward
        found.append(
            {
                "resolution": bench.profile.base.resolution,
                "batch": batch,
                "case": name,
                "images_per_second": batch / median,
                "utilisation": flop / median / rate,
            }
        )
    backbone.free("vae")
    return found


def drawing_noise(bench: Bench, rounds: int) -> float:
    """Milliseconds in which the loop draws a step's noise on the CPU, as it does for the sake of equal results."""
    shape = (bench.size, *bench.backbone.latent_shape)
    random, values = torch.Generator().manual_seed(0), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.randn(shape, generator=random).to(bench.backbone.device)
        values.append(time.perf_counter() - start)
    return 1000 * statistics.median(values)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    size = SMALL if options.miniature else FULL
    rounds = size.rounds if options.rounds is None else options.rounds
    profile = profile_of(folder, size, options.resolutions[0], options.batches[0])
    device = device_of(profile.base)
    create(folder, size, profile.base)
    rate = matrix_rate(size, profile.base, clock(device))
    cells, drawn = (
        {(c.resolution, c.batch, c.variant, c.case): c for c in planned(options.resolutions, options.batches)},
        [],
    )
    shares: dict[str, float] = {}
    table, noise = "", None
    for resolution in options.resolutions:
        bench = RandomBench(folder, profile_of(folder, size, resolution, options.batches[0]))
        for batch in options.batches:
            bench.size = batch
            for variant in available(options.miniature):
                if (resolution, batch, variant, PLAIN) not in cells:
                    continue
                print(f"{resolution} px, batch {batch}, {variant} ...", file=sys.stderr, flush=True)
                for cell in measure_steps(bench, variant, rounds, rate):
                    cells[cell.resolution, cell.batch, cell.variant, cell.case] = cell
                if not table and batch == min(2, options.batches[-1]):
                    # of the adapters that the steps just measured have: made anew, they would have other names
                    shares, table = where_time_goes(device, _alone(bench))
                    noise = drawing_noise(bench, 5)
        print(f"{resolution} px, sampling ...", file=sys.stderr, flush=True)
        drawn += measure_sampling(bench, options.batches, max(2, rounds // 2), rate)
        del bench
        if device.type == "cuda":
            torch.cuda.empty_cache()
    found = list(cells.values())
    return {
        "machine": machine(device),
        "miniature": options.miniature,
        "torch_cuda": torch.version.cuda,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parameters": parameters_of(folder),
        "tera_flop_per_second": rate / 1e12,
        "formula": FORMULA,
        "noise_ms": noise,
        "training": [asdict(cell) for cell in found],
        "sampling": drawn,
        "targets": targets(found),
        "shares": shares,
        "profiler": table,
    }


def _alone(bench: Bench) -> Case:
    for name in list(bench.backbone.adapted.names):
        bench.backbone.remove_adapter(name)
    return training.ours(bench)[FROZEN]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=numbers, default=None, help="pixels; default 1024,512")
    parser.add_argument("--batches", type=numbers, default=None, help="default 1,2,4")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--miniature", action="store_true", help="a model of a few thousand weights, on the CPU")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--document", type=Path, help="Markdown whose table this run fills")
    found = parser.parse_args(given)
    found.resolutions = found.resolutions or ([128, 64] if found.miniature else list(RESOLUTIONS))
    found.batches = found.batches or ([1, 2] if found.miniature else list(BATCHES))
    return found


def main() -> None:
    options = arguments()
    if not options.miniature and not torch.cuda.is_available():
        sys.exit("no CUDA device: `--miniature` shows on a CPU that everything runs")
    with tempfile.TemporaryDirectory(prefix="purecc-bench-") as temporary:
        found = measure(options, Path(temporary))
    table = found.pop("profiler")
    out = options.out or REPOSITORY / ".purecc" / "bench" / f"gpu-{time.strftime('%Y%m%dT%H%M%S')}.json"
    write_json(out, json.loads(json.dumps(found)))
    write_text(out.with_suffix(".profile.txt"), table)
    print(f"{found['formula']}\n")
    print(f"{found['parameters']:,} parameters; matrix products at {found['tera_flop_per_second']:.1f} TFLOP/s\n")
    print(show(found))
    print(f"written to {out} and {out.with_suffix('.profile.txt')}", file=sys.stderr)
    if options.document:
        tables.write(options.document, found)


if __name__ == "__main__":
    main()
