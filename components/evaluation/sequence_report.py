"""The report of concepts learned one after the other: one page with the matrix as a heat map, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from components.evaluation.forgetting import Forgetting
from components.evaluation.templating import templates
from components.files import write_text

_CELL, _LABEL, _TOP = 56, 130, 110
_LOW, _HIGH = (247, 251, 255), (8, 81, 156)


def heat_map(forgetting: Forgetting) -> Markup:
    """R[i, j] as inline SVG: a row per learned concept, a column per judged one; the diagonal is framed."""
    count = len(forgetting.names)
    finite = [value for value in forgetting.matrix_TT.ravel().tolist() if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    width, height = _LABEL + count * _CELL + 10, _TOP + count * _CELL + 10
    said = "metric of each concept after learning each concept"
    head = f'<svg class="heat" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{said}">'
    parts = [head]
    for j, name in enumerate(forgetting.names):
        x = _LABEL + j * _CELL + _CELL / 2
        parts.append(f'<text class="label" transform="translate({x:g} {_TOP - 8}) rotate(-45)">{escape(name)}</text>')
    for i, name in enumerate(forgetting.names):
        y = _TOP + i * _CELL
        parts.append(f'<text class="label end" x="{_LABEL - 8}" y="{y + _CELL / 2 + 4:g}">{escape(name)}</text>')
        for j, value in enumerate(forgetting.matrix_TT[i].tolist()):
            share = (value - low) / (high - low) if math.isfinite(value) and high > low else 0.0
            colour = ",".join(str(round(a + (b - a) * share)) for a, b in zip(_LOW, _HIGH, strict=True))
            frame = ' class="own"' if i == j else ""
            x = _LABEL + j * _CELL
            number = f"{value:.3f}" if math.isfinite(value) else "–"
            ink = "light" if share > 0.55 else "dark"
            parts.append(
                f'<rect{frame} x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_CELL - 2}" fill="rgb({colour})"/>'
                f'<text class="{ink}" x="{x + _CELL / 2:g}" y="{y + _CELL / 2 + 4:g}">{number}</text>'
            )
    return Markup("".join([*parts, "</svg>"]))


def write_sequence_report(
    path: Path,
    *,
    forgetting: Forgetting,
    metric: str,
    preservation: Sequence[Mapping[str, float]],
    refused: str,
    facts: Mapping[str, str],
    left_out: Mapping[str, str],
) -> None:
    """Write the page, atomically.

    Args:
        metric: what R[i, j] is.
        preservation: after each concept: metric -> value, on prompts without a concept.
        refused: why the gate refuses the sequence; empty if it does not.
        facts: name -> value, of what the sequence was made from.
        left_out: concepts that are not part of it -> the reason.
    """
    keys = sorted({key for row in preservation for key in row})
    rows: list[dict[str, Any]] = [
        {"name": name, "values": [_number(row.get(key)) for key in keys]}
        for name, row in zip(forgetting.names, preservation, strict=True)
    ]
    page = (
        templates()
        .get_template("sequence.html.j2")
        .render(
            names=forgetting.names,
            metric=metric,
            heat_map=heat_map(forgetting),
            metrics=[
                (key.removeprefix("continual/").replace("_", " "), _number(v)) for key, v in forgetting.metrics.items()
            ],
            forgetting=[(name, _number(value)) for name, value in forgetting.per_concept.items()],
            preservation={"keys": [key.removeprefix("preservation/") for key in keys], "rows": rows},
            refused=refused,
            facts=list(facts.items()),
            left_out=list(left_out.items()),
        )
    )
    write_text(path, page)


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"
