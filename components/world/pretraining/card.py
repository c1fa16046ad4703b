"""The model card of a pre-trained family: configuration, curves, accuracies, and pictures to look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image
from torch import Tensor

from components.files import atomic_file, write_json, write_text
from components.world.pretraining.quality import GUIDANCE_SCALE, STEPS
from components.world.pretraining.recipe import Recipe

CURVES = {
    "autoencoder": ("psnr",),
    "flow": ("flow", "alignment"),
    "oracle": ("shape", "look"),
    "dino": ("shape", "look"),
    "clip": ("retrieval",),
    "segmenter": ("iou",),
    "csd": ("retrieval",),
    "hps": ("over_damaged", "over_another"),
    "pickscore": ("over_damaged", "over_another"),
}


def image_grid(images_BCHW: Tensor, columns: int) -> Image.Image:
    """Images in [-1, 1] in rows of `columns`; what does not fill a row is left out."""
    rows = len(images_BCHW) // columns
    _, channels, height, width = images_BCHW.shape
    grid = images_BCHW[: rows * columns].reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = ((grid.reshape(rows * height, columns * width, channels) + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.numpy())


def plot_curves(work: Path, target: Path) -> None:
    """One panel for each part's history."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    for axis, (part, names) in zip(figure.subplots(3, 3).flat, CURVES.items(), strict=True):
        records = [json.loads(line) for line in (work / part / "history.jsonl").read_text().splitlines()]
        for name in names:
            axis.plot([record["step"] for record in records], [record[name] for record in records], label=name)
        axis.set(title=part, xlabel="step")
        axis.legend()
        axis.grid(alpha=0.3)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, values in rows.items():
        cells = [f"{100 * values[name]:.1f}" if name in values else "" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_card(
    base: Path,
    *,
    work: Path,
    recipe: Recipe,
    seed: int,
    quality: Mapping[str, Mapping[str, float]],
    oracle: Mapping[str, Mapping[str, float]],
    autoencoder: Mapping[str, float],
    images_BCHW: Tensor,
    prompts: Sequence[str],
) -> None:
    """Write README.md, quality.json, samples.png and curves.png into the base's folder."""
    columns = 12
    shown = min(len(images_BCHW), 72) // columns * columns or len(images_BCHW)
    with atomic_file(base / "samples.png") as temporary:
        image_grid(images_BCHW[:shown], min(columns, shown)).save(temporary, format="png")
    plot_curves(work, base / "curves.png")
    write_json(
        base / "quality.json",
        {
            "prompts": quality,
            "oracle": oracle,
            "autoencoder": autoencoder,
            "seed": seed,
            "recipe": dataclasses.asdict(recipe),
        },
    )
    count = len(prompts)
    text = f"""---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The tiny base

A small text-to-image flow model in the layout of Stable Diffusion 3.5, trained on a procedural world
(`components/world`): 64x64 scenes of shapes in named looks before textured backgrounds. Made by
`flows/pretrain.py` from seed {seed}.

```python
from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained("infra/models/tiny")
pipeline("a red star on the left, snow background", guidance_scale={GUIDANCE_SCALE}, max_sequence_length=20).images[0]
```

## What it draws
Share of images in which the oracle sees what the prompt asks for, in %; {STEPS} steps, guidance {GUIDANCE_SCALE};
{count} single-object prompts in plain colours, a quarter as many of each other form.

{_table(quality)}

The first {shown} of the single-object prompts:

![samples](samples.png)

## The oracle
On held-out renders, in %; a style's tone map can hide an object from anyone, *in plain sight* it does not:

{_table(oracle)}

## The autoencoder
On held-out renders: {", ".join(f"{name} {value:.2f} dB" for name, value in autoencoder.items())}.

## Training
![curves](curves.png)

```yaml
{yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe))), sort_keys=False).strip()}
```
"""
    write_text(base / "README.md", text)
