"""The result of one evaluation: metrics, their spread, and what each pair of pictures gave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import InvalidInput
from components.files import write_json

FILE = "evaluation.json"
_FORMAT = 1


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: metric key (DESIGN section 3) -> value.
        rows: one per prompt and repetition: `category`, `complete`, `base`, `has_concept`, `expect`, `repetition`,
            `seed`, `images` and `masks` (paths relative to the folder) and `values` (metric -> value of that pair).
        spread: metric key -> {"seeds": standard deviation over repetitions, or None with one,
            "prompts": standard error over pairs}.
        references: the reference pictures as evaluated, paths relative to the folder.
        evaluators: evaluator -> id, digest of its weights, preprocessing.
        settings: prompt set, seeds, sampling, base: what the pictures were made with.
        folder: where the pictures lie.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    spread: dict[str, dict[str, float | None]] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    evaluators: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the folder, as JSON-able values."""
        return {
            "format": _FORMAT,
            "metrics": self.metrics,
            "rows": self.rows,
            "spread": self.spread,
            "references": self.references,
            "evaluators": self.evaluators,
            "settings": self.settings,
        }

    def save(self, folder: Path) -> Path:
        """Write `evaluation.json` into `folder`, atomically; it is the last file of an evaluation."""
        write_json(folder / FILE, self.to_json())
        self.folder = folder
        return folder / FILE

    @classmethod
    def from_json(cls, path: Path) -> EvaluationResult:
        """Read `evaluation.json`, or that file in a folder.

        Raises:
            InvalidInput: no such file, or not an evaluation.
        """
        file = path / FILE if path.is_dir() else path
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise InvalidInput("made by another version", file=file, field="format", mend="evaluate again")
            return cls(**content, folder=file.parent)
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"not an evaluation: {error}", file=file, mend="evaluate again") from error

    def by_category(self, metric: str) -> dict[str, float]:
        """Category -> mean of a metric over its pairs, where it was measured."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            value = row["values"].get(metric)
            if value is not None:
                found.setdefault(row["category"], []).append(value)
        return {category: float(np.mean(values)) for category, values in found.items()}


def category_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Every metric by category of prompts: rows of `category`, `metric`, `value` (the mean over its pairs)."""
    names = sorted({name for row in result.rows for name in row["values"]})
    return [
        {"category": category, "metric": name, "value": value}
        for name in names
        for category, value in result.by_category(name).items()
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
    """Mean of every metric over the rows that have it, and its spread."""
    metrics: dict[str, float] = {}
    spread: dict[str, dict[str, float | None]] = {}
    names = sorted({name for row in rows for name in row["values"]})
    for name in names:
        by_repetition: dict[int, list[float]] = {}
        for row in rows:
            value = row["values"].get(name)
            if value is not None:
                by_repetition.setdefault(row["repetition"], []).append(value)
        values = np.array([value for part in by_repetition.values() for value in part])
        if not values.size:
            continue
        metrics[name] = float(values.mean())
        means = [float(np.mean(part)) for part in by_repetition.values()]
        spread[name] = {
            "seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
            "prompts": float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else None,
        }
    return metrics, spread
