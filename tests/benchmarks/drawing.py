"""Pictures a second with and without an adapter, and what it costs to keep an adapter and to take it up."""

from __future__ import annotations

import itertools
from pathlib import Path

from measuring import Row, clock, interleaved, rows
from training import COMPLETE, Bench

from components.backbones.interface import TextEncoding
from components.files import atomic_folder
from components.settings import Profile


def measure(folder: Path, profile: Profile, rounds: int) -> list[Row]:
    """Sampling with the profile's steps and guidance, then saving and loading."""
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
    cases, items = {}, {}
    for size in sizes:
        for name, adapter in names.items():
            case = f"{name}, batch {size}"
            cases[case] = lambda size=size, adapter=adapter: draw(size, adapter)
            items[case] = size
    now = clock(backbone.device)
    found = rows("sampling", interleaved(cases, rounds, now), f"base, batch {sizes[-1]}", items=items)

    saved = folder / "saved"
    _save(bench, saved / "first")
    numbers = itertools.count()

    def save() -> None:
        _save(bench, saved / str(next(numbers)))

    def load() -> None:
        backbone.load_adapter(saved / "first", "loaded")
        backbone.remove_adapter("loaded")

    return [*found, *rows("adapter", interleaved({"save": save, "load": load}, rounds, now), "save")]


def _save(bench: Bench, target: Path) -> None:
    with atomic_folder(target) as partial:
        bench.backbone.save_adapter("pure", partial)
