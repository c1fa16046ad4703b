"""What is measured on a GPU, as cells, targets and tables; what is not measured yet stands there as open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESOLUTIONS, BATCHES = (1024, 512), (1, 2, 4)
PLAIN, STAGE_1, FROZEN = "plain LoRA", "stage 1 (extractor)", "stage 2, frozen"
CASES = (PLAIN, STAGE_1, FROZEN, "stage 2, detached", "stage 2, trainable", "stage 2, frozen, with DOP")
DRAWN = ("base", "LoRA and embeddings")
# What trades memory and time; those beyond the first two are measured at the first resolution and batch 2 alone.
VARIANTS = ("none", "checkpointing", "activations on the host", "int8 base", "compiled")
EVERYWHERE = ("none", "checkpointing")


@dataclass(frozen=True)
class Cell:
    """A training step's cost; what is not measured is None.

    Attributes:
        variant: the settings that trade memory and time.
        ratio: to the plain LoRA step of the same resolution, batch and variant.
        utilisation: model FLOPs a second through the card's measured rate of matrix products.
        peak_gb: 10^9 bytes of the allocator, at most.
    """

    resolution: int
    batch: int
    variant: str
    case: str
    milliseconds: float | None = None
    ratio: float | None = None
    tera_flop: float | None = None
    utilisation: float | None = None
    peak_gb: float | None = None
    note: str = "open"


def planned(
    resolutions: Sequence[int] = RESOLUTIONS, batches: Sequence[int] = BATCHES, variants: Sequence[str] = VARIANTS
) -> list[Cell]:
    """Every cell of the table, open."""
    return [
        Cell(resolution, batch, variant, case)
        for resolution in resolutions
        for batch in batches
        for variant in variants
        if variant in EVERYWHERE or (resolution, batch) == (resolutions[0], min(2, batches[-1]))
        for case in CASES
    ]


def targets(cells: list[Cell]) -> list[dict[str, Any]]:
    """What was aimed at on one H100 at 1024 px and batch 2, and what was measured (None: open)."""

    def value(case: str, variant: str, field: str) -> float | None:
        found = [c for c in cells if (c.resolution, c.batch, c.variant, c.case) == (1024, 2, variant, case)]
        return getattr(found[0], field) if found else None

    steps = [value(case, "none", "milliseconds") for case in (STAGE_1, FROZEN)]
    hours = None if None in steps else sum(400 * each / 1000 / 3600 for each in steps if each is not None)
    return [
        {"what": "utilisation of a stage-2 step", "bound": ">= 0.5", "found": value(FROZEN, "none", "utilisation")},
        {"what": "peak GB, checkpointing", "bound": "<= 16", "found": value(FROZEN, "checkpointing", "peak_gb")},
        {"what": "peak GB, without", "bound": "<= 24", "found": value(FROZEN, "none", "peak_gb")},
        {"what": "hours of 400 + 400 steps", "bound": "<= 0.06", "found": hours},
        {"what": "stage 2 / plain LoRA step", "bound": "<= 2.6", "found": value(FROZEN, "none", "ratio")},
    ]


def show(found: dict[str, Any]) -> str:
    """The tables, as Markdown; what is not measured is `open`."""

    def number(value: float | None, digits: int) -> str:
        return "open" if value is None else f"{value:.{digits}f}"

    lines = ["| px | batch | settings | step | ms | / plain LoRA | TFLOP | utilisation | peak GB |"]
    lines.append("|--:|--:|---|---|--:|--:|--:|--:|--:|")
    for cell in found["training"]:
        if cell["note"] == "out of memory":
            numbers = [cell["note"], "", number(cell["tera_flop"], 1), "", ""]
        else:
            fields = {"milliseconds": 1, "ratio": 2, "tera_flop": 1, "utilisation": 2, "peak_gb": 1}
            numbers = [number(cell[field], digits) for field, digits in fields.items()]
        head = [str(cell["resolution"]), str(cell["batch"]), cell["variant"], cell["case"]]
        lines.append("| " + " | ".join([*head, *numbers]) + " |")
    lines += ["", "| px | batch | sampling | images/s | utilisation |", "|--:|--:|---|--:|--:|"]
    for row in found["sampling"]:
        rates = [number(row["images_per_second"], 3), number(row["utilisation"], 2)]
        lines.append("| " + " | ".join([str(row["resolution"]), str(row["batch"]), row["case"], *rates]) + " |")
    lines += ["", "| target (one H100, 1024 px, batch 2) | bound | found |", "|---|--:|--:|"]
    lines += [f"| {row['what']} | {row['bound']} | {number(row['found'], 3)} |" for row in found["targets"]]
    if found["shares"]:
        lines += ["", f"| of a step ({FROZEN}) | share |", "|---|--:|"]
        lines += [f"| {kind} | {share:.2f} |" for kind, share in found["shares"].items()]
    return "\n".join(lines)


def unmeasured(resolutions: Sequence[int] = RESOLUTIONS, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """The tables before any measurement: every row open."""
    cells = planned(resolutions, batches)
    drawn = [
        {"resolution": side, "batch": batch, "case": name, "images_per_second": None, "utilisation": None}
        for side in resolutions
        for batch in batches
        for name in DRAWN
    ]
    return {"training": [asdict(c) for c in cells], "sampling": drawn, "targets": targets(cells), "shares": {}}
