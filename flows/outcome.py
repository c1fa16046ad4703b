"""What a customize ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from components.errors import PureCCError


@dataclass(frozen=True)
class Outcome:
    """The end of a customize.

    Attributes:
        status: `promoted` (its version is the champion now), `refused` (gates), `unchanged` (nothing was to be done).
        version: the registered version.
        champion: the version that bears the champion alias now.
        replaced: the champion before, where it was promoted.
        reason: why, in words.
        gates: the judged gates, as `GateResult.to_json`.
        reused: stages whose kept result was used.
    """

    name: str
    status: Literal["promoted", "refused", "unchanged"]
    version: int
    champion: int | None
    reason: str
    run: str | None
    report: str | None
    profile: str
    replaced: int | None = None
    gates: Sequence[Mapping[str, Any]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    reused: Sequence[str] = ()
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class GatesRefused(PureCCError):
    """The adapter was made, registered and refused; the champion is untouched."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome
        super().__init__(f"{outcome.name}: version {outcome.version} is refused: {outcome.reason}")
