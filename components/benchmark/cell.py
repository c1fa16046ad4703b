"""One cell of a benchmark: a training whose adapters are evaluated on the way."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from components.backbones.sd3 import SD3Backbone
from components.benchmark.plan import Cell
from components.benchmark.table import MEASURED, Row
from components.concepts.concept import Concept
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.learning.history import read_history
from components.learning.pure import train_pure
from components.learning.tracker import Tracker
from components.settings import Profile, project_root

_WEIGHTS = ("adapter_model.safetensors", "concept_embeddings.safetensors", "weight_differences.safetensors")


def measure(
    cell: Cell,
    concept: Concept,
    profile: Profile,
    extractor: Path | None,
    work: Path,
    originals: Path,
    tracker: Tracker,
    *,
    key: str,
    evaluated: Callable[[int, Row], None] = lambda _step, _row: None,
) -> list[Row]:
    """Train the cell's last stage and evaluate its adapter at each of its steps.

    Args:
        extractor: the adapter folder of stage 1, for methods that have one.
        work: the training goes on from the checkpoint that is here; keeps `evaluation/<step>` of the last step.
        originals: cache of the original model's pictures.
        key: of the rows.
        evaluated: told of each row.
    """
    backbone = SD3Backbone.load(profile.base)
    judges: Evaluators | None = None
    rows = []
    for step, adapter in _adapters(backbone, concept, profile, extractor, work, tracker):
        judges = judges or load_evaluators(profile.evaluation.evaluators, project_root(), backbone.device)
        backbone.load_adapter(adapter, "measured")
        try:
            target = work / "evaluation" / str(step)
            result = evaluate(backbone, "measured", concept, profile, target, originals, evaluators=judges)
        finally:
            backbone.remove_adapter("measured")
        row = {
            "variant": cell.variant,
            "concept": cell.concept,
            "kind": concept.kind,
            "seed": str(cell.seed),
            "step": str(step),
            "status": MEASURED,
            "error": "",
            "key": key,
            "cost/adapter_bytes": str(
                sum((adapter / name).stat().st_size for name in _WEIGHTS if (adapter / name).is_file())
            ),
            **_costs(work),
            **{name: f"{value:.6g}" for name, value in sorted(result.metrics.items())},
        }
        rows.append(row)
        evaluated(step, row)
    return rows


def _adapters(
    backbone: SD3Backbone, concept: Concept, profile: Profile, extractor: Path | None, work: Path, tracker: Tracker
) -> Iterator[tuple[int, Path]]:
    """Step -> adapter folder."""
    last = train_pure(backbone, concept, profile, extractor, work, tracker)
    for step in profile.learning.snapshot_steps:
        yield step, work / "snapshots" / str(step)
    yield profile.learning.pure.steps, last


def _costs(work: Path) -> Row:
    """Median seconds per step and peak memory of the last stage, by its history."""
    history = read_history(work / "history.jsonl")
    speeds = [row["speed/steps_per_second"] for row in history if row.get("speed/steps_per_second")]
    peaks = [row["memory/peak_mib"] for row in history if "memory/peak_mib" in row]
    costs = {"cost/step_seconds": f"{1 / statistics.median(speeds):.4g}"} if speeds else {}
    return costs | ({"cost/peak_mib": f"{max(peaks):.0f}"} if peaks else {})
