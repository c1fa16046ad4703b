"""The report of one run: a single HTML file with everything in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.concepts.concept import Concept
from components.evaluation.charts import Series, Values, line_chart
from components.evaluation.figures import BUDGET, Budget, embedded, pairs_of
from components.evaluation.metrics import GROUPS, METRICS, Metric
from components.evaluation.result import EvaluationResult
from components.evaluation.templating import templates
from components.files import write_text

_ARROWS = {"higher": "↑", "lower": "↓", "zero": ""}
_STAGES = {
    "extractor": "Stage 1: the representation extractor",
    "pure-learning": "Stage 2: pure learning",
}
_PANELS = (
    ("Flow-matching loss", ("loss/cc",), None, "L_CC: how well the complete text explains the references."),
    ("PureCC loss", ("loss/purecc",), None, "What was learned off the direction of the guidance."),
    (
        "λ*",
        ("lambda_star/mean",),
        ("lambda_star/min", "lambda_star/max"),
        "How much of the guidance the model has taken up; shaded: the batch.",
    ),
    ("Guidance cosine", ("guidance/cosine",), None, "Between what was learned and the guidance; 1 is pure."),
    ("Guidance norm", ("guidance/norm",), None, "Strength of the extractor's guidance."),
    ("Gradient norm", ("grad_norm",), None, "Before clipping."),
)


def write_report(
    path: Path,
    *,
    concept: Concept,
    result: EvaluationResult,
    history: Mapping[str, Sequence[Mapping[str, float]]],
    gates: Sequence[Mapping[str, Any]],
    lineage: Mapping[str, str],
) -> None:
    """Write the report, atomically.

    Args:
        result: with its `folder`, where its pictures lie.
        history: stage -> one mapping of metrics per step, each with `step`.
        gates: each with `metric`, `value`, `bound`, `passed`, `champion`, `reason`.
        lineage: name -> fingerprint of what the run was made from.
    """
    budget = Budget(BUDGET)
    folder = result.folder
    references = [
        {**embedded(folder / name, budget), "text": text}
        for name, text in zip(result.references, [reference.text for reference in concept.references], strict=False)
        if folder is not None
    ]
    categories, shown = pairs_of(result, budget)
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            concept=concept,
            verdict=_verdict(gates),
            tiles=list(_tiles(result.metrics)),
            references=references,
            categories=categories,
            pairs_shown=shown,
            pairs_left_out=len(result.rows) - shown,
            gates=[_gate(gate) for gate in gates],
            groups=_groups(result),
            by_category=_by_category(result),
            other_metrics=_other_metrics(result.metrics),
            stages=[
                {"name": _STAGES.get(name, name), "panels": _panels(history[name])}
                for name in sorted(history, key=_course)
            ],
            lineage=list(lineage.items()),
            evaluators=[(name, _facts(info)) for name, info in result.evaluators.items()],
        )
    )
    write_text(path, page)


def _course(stage: str) -> tuple[int, str]:
    """Stages in the order in which they run, unknown ones last."""
    return (list(_STAGES).index(stage) if stage in _STAGES else len(_STAGES), stage)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{size:.1f}" if size >= 10 else f"{size:.3f}" if size >= 0.1 else f"{size:.2g}"
    return f"\N{MINUS SIGN}{text}" if value < 0 else text


def _verdict(gates: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    failed = sum(not gate["passed"] for gate in gates)
    if not gates:
        return {"tone": "note", "text": "No gates set"}
    if failed:
        return {"tone": "bad", "text": f"Refused: {failed} of {len(gates)} gates failed"}
    return {"tone": "good", "text": f"Passed {'the gate' if len(gates) == 1 else f'all {len(gates)} gates'}"}


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    meaning = METRICS.get(gate["metric"])
    return {
        **gate,
        "label": meaning.label if meaning else "",
        "value": _number(gate["value"]),
        "champion": _number(gate.get("champion")),
    }


def _bounds(key: str, meaning: Metric, metrics: Mapping[str, float]) -> tuple[float | None, float | None]:
    """The values that a metric is read against: untouched or chance, and best."""
    low = metrics.get(f"{key}{meaning.low}") if meaning.low else None
    high = metrics.get(f"{key}{meaning.high}") if isinstance(meaning.high, str) else meaning.high
    return low, high


def _tiles(metrics: Mapping[str, float]) -> Iterable[dict[str, Any]]:
    """The four figures that say most: the concept, the layout, the prompt, the rest of the model."""
    wanted = (
        ("fidelity/dino_masked", "Concept: DINO on the subject", "{low} original, {high} references"),
        ("fidelity/dino", "Concept: DINO", "{low} original, {high} references"),
        ("preservation/seg_cons", "Layout kept: Seg-Cons", "{low} another seed, {high} identical"),
        ("preservation/clip_t_delta", "Base text: CLIP-T difference", "0 untouched, up is better"),
        ("preservation/prior_distance", "Other prompts: pixel distance", "0 untouched, {low} another seed"),
    )
    for key, name, hint in wanted:
        if key not in metrics or (key == "fidelity/dino" and "fidelity/dino_masked" in metrics):
            continue
        low, high = _bounds(key, METRICS[key], metrics)
        share = None
        if low is not None and high is not None and not math.isclose(low, high):
            share = round(100 * min(max((metrics[key] - low) / (high - low), 0.0), 1.0))
        yield {
            "name": name,
            "value": _number(metrics[key]),
            "hint": hint.format(low=_number(low), high=_number(high)),
            "share": share,
        }


def _groups(result: EvaluationResult) -> list[dict[str, Any]]:
    groups = []
    for name, text, keys in GROUPS:
        rows = []
        for key in keys:
            if key not in result.metrics:
                continue
            meaning = METRICS[key]
            low, high = _bounds(key, meaning, result.metrics)
            rows.append(
                {
                    "key": key,
                    "label": meaning.label,
                    "text": meaning.text,
                    "arrow": _ARROWS[meaning.better],
                    "value": _number(result.metrics[key]),
                    "low": _number(low) if meaning.low else "",
                    "high": _number(high) if meaning.high is not None else "",
                    "spread": _spread(result.spread.get(key)),
                }
            )
        if rows:
            groups.append({"name": name, "text": text, "rows": rows})
    return groups


def _spread(spread: Mapping[str, float | None] | None) -> str:
    if spread is None:
        return ""
    if spread["seeds"] is not None:
        return f"± {_number(spread['seeds'])}"
    return "" if spread["prompts"] is None else f"se {_number(spread['prompts'])}"


def _by_category(result: EvaluationResult) -> dict[str, Any]:
    keys = [
        key
        for key in ("fidelity/dino", "fidelity/dino_masked", "preservation/seg_cons", "preservation/clip_t_delta",
                    "preservation/accuracy_delta", "preservation/prior_distance")
        if key in result.metrics
    ]  # fmt: skip
    tables = {key: result.by_category(key) for key in keys}
    names = [METRICS[key].label for key in keys]
    categories = list(dict.fromkeys(row["category"] for row in result.rows))
    rows = [
        (category, [_number(tables[key][category]) if category in tables[key] else "" for key in keys])
        for category in categories
    ]
    return {"names": names, "rows": rows}


def _other_metrics(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    shown = set(METRICS)
    for key, meaning in METRICS.items():
        shown |= {f"{key}{part}" for part in (meaning.low, meaning.high) if isinstance(part, str)}
    return [(key, _number(value)) for key, value in sorted(metrics.items()) if key not in shown]


def _panels(rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    def column(key: str) -> Values:
        return np.array([float(row.get(key, math.nan)) for row in rows])

    steps = [float(row["step"]) for row in rows]
    panels = []
    for name, keys, band_keys, hint in _PANELS:
        series = [Series(key, column(key)) for key in keys if any(key in row for row in rows)]
        if not series:
            continue
        band = None
        if band_keys is not None and all(any(key in row for row in rows) for key in band_keys):
            band = (column(band_keys[0]), column(band_keys[1]))
        finite = series[0].values[np.isfinite(series[0].values)]
        tail = finite[-max(1, len(finite) // 10) :]
        last = f"last tenth {_number(float(tail.mean()))}" if tail.size else ""
        panels.append({"name": name, "hint": hint, "last": last, "svg": line_chart(name, steps, series, band)})
    return panels


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            key.replace("_", " "),
            ", ".join(f"{a} {b}" for a, b in value.items()) if isinstance(value, dict) else str(value),
        )
        for key, value in info.items()
    ]
