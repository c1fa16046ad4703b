"""Pictures a second with and without an adapter, and what it costs to keep an adapter and to take it up."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

from measuring import Row, clock, interleaved, rows
from training import COMPLETE, Bench

from components.backbones.interface import TextEncoding
from components.files import atomic_folder
from components.settings import Profile


def measure(folder: Path, profile: Profile, rounds: int, least: float) -> list[Row]:
    """Sampling with the profile's steps and guidance, then saving and loading; cases last `least` seconds a round."""
    bench = Bench(folder, profile)
    bench.adapters(bench.batch())
    backbone, sampling = bench.backbone, profile.evaluation.sampling
    sizes = sorted({1, sampling.batch_size})

    def draw(size: int, adapter: str | None) -> None:
        def text(prompt: str) -> TextEncoding:
            return backbone.encode_text([prompt] * size)

        backbone.sample(
            text(COMPLETE.replace("[V] ", "") if adapter is None else COMPLETE),
            text(""),
            seeds=range(size),
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            adapter=adapter,
        )

    names = {"base": None, "LoRA": "lora", "LoRA and embeddings": "pure"}
    now = clock(backbone.device)
    found = []
    for size in sizes:
        cases = {f"{name}, batch {size}": functools.partial(draw, size, adapter) for name, adapter in names.items()}
        seconds = interleaved(cases, rounds, now, least=least)
        found += rows("sampling", seconds, f"base, batch {size}", items=size)

    saved = folder / "saved"
    _save(bench, saved / "first")
    numbers = itertools.count()

    def save() -> None:
        _save(bench, saved / str(next(numbers)))

    def load() -> None:
        backbone.load_adapter(saved / "first", "loaded")
        backbone.remove_adapter("loaded")

    return [*found, *rows("adapter", interleaved({"save": save, "load": load}, rounds, now, least=least), "save")]


def _save(bench: Bench, target: Path) -> None:
    with atomic_folder(target) as partial:
        bench.backbone.save_adapter("pure", partial)
