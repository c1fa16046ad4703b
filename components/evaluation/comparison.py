"""One picture that compares models: a row per prompt, a column per model, the same seed along a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from components.evaluation.pictures import Picture

_TEXT, _LINE, _GAP = 15, 22, 8  # pixels


def compose(
    references: Sequence[Picture], columns: Mapping[str, Sequence[Picture]], prompts: Sequence[str], *, scale: int = 3
) -> Image.Image:
    """References on top, then a row of pictures under each prompt; pictures enlarged by whole pixels."""
    font = ImageFont.load_default(_TEXT)
    side = len(references[0]) * scale
    titles = [_wrapped(title, side, font) for title in columns]
    head, caption = _LINE + 2, _LINE
    title_height = max(title.count("\n") + 1 for title in titles) * _LINE
    width = max(len(columns), len(references)) * (side + _GAP) + _GAP
    height = head + side + _GAP + title_height + len(prompts) * (caption + side + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)

    def paste(picture: Picture, column: int, top: int) -> None:
        image = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(image, (_GAP + column * (side + _GAP), top))

    pen.text((_GAP, 5), "references", fill="black", font=font)
    for column, picture in enumerate(references):
        paste(picture, column, head)
    top = head + side + _GAP
    for column, title in enumerate(titles):
        pen.multiline_text((_GAP + column * (side + _GAP), top), title, fill="black", font=font)
    top += title_height
    for row, prompt in enumerate(prompts):
        pen.text((_GAP, top + 1), prompt, fill="#555555", font=font)
        for column, pictures in enumerate(columns.values()):
            paste(pictures[row], column, top + caption)
        top += caption + side + _GAP
    return sheet


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
