"""Gates: bounds that an adapter's metrics have to satisfy before it may become the champion."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components.settings import Gate


@dataclass(frozen=True)
class GateResult:
    """One gate, judged.

    Attributes:
        metric: the metric's key.
        value: the adapter's value; None where it is missing or not finite.
        bound: every bound that applied, in words a table can show.
        passed: whether all of them hold.
        champion: the champion's value, if there is a champion that has one.
        reason: why it failed, or how it passed.
    """

    metric: str
    value: float | None
    bound: str
    passed: bool
    champion: float | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GateReport:
    """All gates of a profile, judged; `passed` only if each of them is."""

    results: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def failures(self) -> tuple[GateResult, ...]:
        return tuple(result for result in self.results if not result.passed)

    @property
    def refusal(self) -> str:
        """Each failed gate with its value and bound; empty if all passed."""
        return "; ".join(result.reason for result in self.failures)

    def to_json(self) -> list[dict[str, Any]]:
        return [result.to_json() for result in self.results]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> GateReport:
        """What `to_json` gave."""
        return cls(tuple(GateResult(**row) for row in rows))


def _finite(values: Mapping[str, float] | None, metric: str) -> float | None:
    value = None if values is None else values.get(metric)
    return value if value is not None and math.isfinite(value) else None


def judge_one(
    metric: str, gate: Gate, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> GateResult:
    """Judge one metric; a value that is missing or not finite fails whatever the bounds."""
    value, reference = _finite(metrics, metric), _finite(champion, metric)
    bounds: list[tuple[str, bool]] = []
    if gate.minimum is not None:
        bounds.append((f">= {gate.minimum:g}", value is not None and value >= gate.minimum))
    if gate.maximum is not None:
        bounds.append((f"<= {gate.maximum:g}", value is not None and value <= gate.maximum))
    if gate.not_worse_by is not None and reference is not None:
        # A champion that never had this metric cannot bound it: a new gate would otherwise block every successor.
        if gate.better == "higher":
            limit = reference - gate.not_worse_by
            bounds.append((f">= {limit:g} (champion {reference:g} - {gate.not_worse_by:g})", _at_least(value, limit)))
        else:
            limit = reference + gate.not_worse_by
            bounds.append((f"<= {limit:g} (champion {reference:g} + {gate.not_worse_by:g})", _at_most(value, limit)))
    bound = " and ".join(text for text, _ in bounds) or "finite"
    failed = [text for text, holds in bounds if not holds]
    if value is None:
        return GateResult(metric, None, bound, False, reference, f"{metric} {_absence(metric, metrics)}, needs {bound}")
    if failed:
        reason = f"{metric} = {value:g}, needs {' and '.join(failed)}"
        return GateResult(metric, value, bound, False, reference, reason)
    return GateResult(metric, value, bound, True, reference, f"{metric} = {value:g}, satisfies {bound}")


def _at_least(value: float | None, limit: float) -> bool:
    return value is not None and value >= limit


def _at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _absence(metric: str, metrics: Mapping[str, float]) -> str:
    if metric in metrics:
        return f"is {metrics[metric]}"
    near = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.9)  # metrics have names that are much alike
    return f"was not measured (did you mean {near[0]}?)" if near else "was not measured"


def judge(
    metrics: Mapping[str, float], gates: Mapping[str, Gate], champion: Mapping[str, float] | None = None
) -> GateReport:
    """Judge an adapter's metrics against the profile's gates.

    Args:
        metrics: the adapter's metrics.
        gates: metric -> bounds, from the profile.
        champion: the champion's metrics under the same evaluation, or None where there is no champion.
    """
    return GateReport(tuple(judge_one(metric, gate, metrics, champion) for metric, gate in gates.items()))
