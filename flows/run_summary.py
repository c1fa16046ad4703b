"""What a run over many concepts ended with: every concept by name, and one of three ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from components.errors import PureCCError

Status = Literal["promoted", "refused", "learned", "reused", "retired", "failed", "quarantined", "left"]
State = Literal["completed", "completed with failures", "failed"]

_GOOD = ("promoted", "learned", "reused", "retired")
_BAD = ("refused", "failed", "quarantined")


@dataclass(frozen=True)
class ConceptResult:
    """One concept of a run.

    Attributes:
        status: `promoted`, `learned` (sequential), `reused`, `retired`; `refused` (gates), `failed`, `quarantined`;
            `left` (a cap was reached before it was begun).
        version: the version it stands at.
        seconds: wall-clock time spent on it.
        gpu_seconds: the same times the GPUs it had.
    """

    name: str
    status: Status
    reason: str
    version: int | None = None
    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RunSummary:
    """The end of a run.

    Attributes:
        minimum_success: share of concepts below which the run has failed.
        checks: what was checked over all concepts: composition, or forgetting.
        bundle: the registered bundle of the run.
        run: the MLflow run that holds the evidence.
    """

    mode: str
    concepts: Sequence[ConceptResult]
    minimum_success: float
    checks: Mapping[str, Any] = field(default_factory=dict)
    bundle: Mapping[str, Any] | None = None
    run: str | None = None
    report: str | None = None

    @property
    def state(self) -> State:
        """`failed` below the minimum ratio; concepts that were left for the next run count neither way."""
        good = sum(result.status in _GOOD for result in self.concepts)
        bad = sum(result.status in _BAD for result in self.concepts)
        checked = self.checks.get("refused")
        if bad and good < self.minimum_success * (good + bad):
            return "failed"
        return "completed with failures" if bad or checked else "completed"

    @property
    def message(self) -> str:
        """One line that names whatever did not go well."""
        counts = {status: [r.name for r in self.concepts if r.status == status] for status in (*_GOOD, *_BAD, "left")}
        parts = [
            f"{len(names)} {status}" + (f" ({', '.join(names)})" if status in (*_BAD, "left") else "")
            for status, names in counts.items()
            if names
        ]
        if self.checks.get("refused"):
            parts.append(str(self.checks["refused"]))
        return f"{self.state}: {', '.join(parts) or 'there was no concept'}"

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "message": self.message,
            "mode": self.mode,
            "concepts": [result.to_json() for result in self.concepts],
            "checks": dict(self.checks),
            "bundle": None if self.bundle is None else dict(self.bundle),
            "run": self.run,
            "report": self.report,
            "budget": {
                "seconds": sum(result.seconds for result in self.concepts),
                "gpu_seconds": sum(result.gpu_seconds for result in self.concepts),
            },
        }


class RunFailed(PureCCError):
    """Fewer concepts came through than the profile demands."""

    def __init__(self, summary: Mapping[str, Any]):
        self.summary = summary
        super().__init__(str(summary["message"]))
