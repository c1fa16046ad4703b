"""One cell of a benchmark: a training whose adapters are evaluated on the way."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.backbones.sd3 import SD3Backbone
from components.benchmark.plan import Cell
from components.benchmark.prompt_guidance import guidance_by_category
from components.concepts.concept import Concept
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.evaluation.result import category_rows
from components.files import write_json
from components.learning.history import read_history
from components.learning.pure import train_pure
from components.learning.tracker import Tracker
from components.settings import Profile, project_root

Row = dict[str, Any]
"""A row of `components.evaluation.cells`."""

ROWS, CATEGORIES, HISTORY, EVALUATION = "rows.json", "categories.json", "history.jsonl", "evaluation"
"""What a cell keeps: its rows, the metrics by category, the course of its training, its pictures; of the last step."""

_COPIES = {"pytorch_lora_weights.safetensors"}  # the same LoRA once more, under diffusers' names


def measure(
    cell: Cell,
    concept: Concept,
    profile: Profile,
    extractor: Path | None,
    work: Path,
    originals: Path,
    tracker: Tracker,
    *,
    evaluated: Callable[[Row], None] = lambda _row: None,
) -> list[Row]:
    """Train the cell's last stage and evaluate its adapter at each of its steps, and the last one at every scale.

    Leaves `rows.json`, `categories.json`, `history.jsonl` and `evaluation/` in `work`.

    Args:
        extractor: the adapter folder of stage 1, for methods that have one.
        work: the training goes on from the checkpoint that is here.
        originals: cache of the original model's pictures.
        evaluated: told of each row.
    """
    began = time.monotonic()
    backbone = SD3Backbone.load(profile.base)
    judges: Evaluators | None = None
    rows: list[Row] = []
    for step, adapter in _adapters(backbone, concept, profile, extractor, work, tracker):
        judges = judges or load_evaluators(profile.evaluation.evaluators, project_root(), backbone.device)
        last = step == cell.steps[-1]
        backbone.load_adapter(adapter, "measured")
        try:
            for scale in cell.scales if last else cell.scales[:1]:
                target = work / EVALUATION if last and scale == 1 else work / "evaluated" / f"{step}-{scale:g}"
                result = evaluate(
                    backbone,
                    "measured",
                    concept,
                    profile,
                    target,
                    originals,
                    adapter_scale=scale,
                    evaluators=judges,
                )
                if last and scale == 1:
                    by_category = category_rows(result)
                    if extractor is not None:
                        by_category += guidance_by_category(
                            backbone, "measured", concept, profile.learning, extractor, target
                        )
                    write_json(work / CATEGORIES, by_category)
                row = {
                    "method": cell.variant,
                    "concept": cell.concept,
                    "kind": concept.kind,
                    "seed": cell.seed,
                    "step": step,
                    "scale": scale,
                    **_costs(work, adapter, step),
                    **{name: float(f"{value:.6g}") for name, value in sorted(result.metrics.items())},
                }
                rows.append(row)
                evaluated(row)
        finally:
            backbone.remove_adapter("measured")
    rows[-1]["cost/cell_seconds"] = round(time.monotonic() - began, 1)
    write_json(work / ROWS, rows)
    return rows


def _adapters(
    backbone: SD3Backbone, concept: Concept, profile: Profile, extractor: Path | None, work: Path, tracker: Tracker
) -> Iterator[tuple[int, Path]]:
    """Step -> adapter folder."""
    last = train_pure(backbone, concept, profile, extractor, work, tracker)
    for step in profile.learning.snapshot_steps:
        yield step, work / "snapshots" / str(step)
    yield profile.learning.pure.steps, last


def _costs(work: Path, adapter: Path, step: int) -> Row:
    """Of the last stage: median seconds a step and all of them so far, peak memory; and the adapter's size."""
    history = read_history(work / HISTORY)
    speeds = [row["speed/steps_per_second"] for row in history if row.get("speed/steps_per_second")]
    peaks = [row["memory/peak_mib"] for row in history if "memory/peak_mib" in row]
    size = sum(file.stat().st_size for file in adapter.glob("*.safetensors") if file.name not in _COPIES)
    costs: Row = {"cost/adapter_mib": round(size / 2**20, 4)}
    if speeds:
        seconds = 1 / statistics.median(speeds)
        costs |= {"cost/seconds_per_step": round(seconds, 4), "cost/seconds": round(seconds * step, 2)}
    return costs | ({"cost/peak_mib": round(max(peaks))} if peaks else {})


def read_json(file: Path) -> Any:
    """What a cell kept under one of its names."""
    return json.loads(file.read_text(encoding="utf-8"))
