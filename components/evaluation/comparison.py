"""One picture that compares models: a row per prompt, a column per model, the same seed along a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from components.backbones.interface import Backbone
from components.evaluation.pictures import Picture, to_pictures


def draw_models(
    backbone: Backbone,
    models: Mapping[str, str | None],
    prompts: Sequence[tuple[str, str]],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
) -> dict[str, list[Picture]]:
    """Pictures of each model, from the same noise.

    Args:
        models: title -> adapter, None for the original model.
        prompts: pairs of complete text (for adapters) and base text (for the original model).
    """
    negative = backbone.encode_text([""])
    drawn = {}
    for title, adapter in models.items():
        texts = [complete if adapter else base for complete, base in prompts]
        drawn[title] = to_pictures(
            backbone.sample(
                backbone.encode_text(texts),
                negative,
                seeds=[seed + index for index in range(len(texts))],
                steps=steps,
                guidance_scale=guidance_scale,
                adapter=adapter,
            )
        )
    return drawn


def compose(
    references: Sequence[Picture], columns: Mapping[str, Sequence[Picture]], prompts: Sequence[str], *, scale: int = 3
) -> Image.Image:
    """References on top, then a row of pictures under each prompt; pictures enlarged by whole pixels."""
    side = len(references[0]) * scale
    gap, head, caption = 8, 26, 22
    width = max(len(columns), len(references)) * (side + gap) + gap
    height = head + side + gap + len(prompts) * (caption + side + gap) + head
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)

    def paste(picture: Picture, column: int, top: int) -> None:
        image = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(image, (gap + column * (side + gap), top))

    pen.text((gap, 5), "references", fill="black", font=font)
    for column, picture in enumerate(references):
        paste(picture, column, head)
    top = head + side + gap
    for column, title in enumerate(columns):
        pen.text((gap + column * (side + gap), top + 3), title, fill="black", font=font)
    top += head
    for row, prompt in enumerate(prompts):
        pen.text((gap, top + 1), prompt, fill="#555555", font=font)
        for column, pictures in enumerate(columns.values()):
            paste(pictures[row], column, top + caption)
        top += caption + side + gap
    return sheet
