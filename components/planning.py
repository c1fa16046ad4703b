"""What is to be done for each concept: the desired state (digests of its inputs) against what the registry says.

Pure and level-triggered: a plan depends on the two states alone, never on what happened in between, so several late
runs collapse to one and a plan of an unchanged world has nothing to do. The key of `Inputs` is the one by which a
customize recognises unchanged work; a version gets it as tags when its judgement is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from components.files import digest_of

Action = Literal["train", "reuse", "retire", "quarantined"]

PREFIX = "inputs/"
KEY = f"{PREFIX}key"
BROKEN = "integrity/broken"

# Which part of the desired state an input of a stage belongs to; any other one is a setting of the profile.
_PARTS = {"data": "data", "base": "base", "version": "method", "prompts": "prompts", "evaluators": "evaluators"}


@dataclass(frozen=True)
class Inputs:
    """Everything that the outcome of a customize depends on.

    Attributes:
        parts: `data`, `base`, `method`, `prompts`, `evaluators`, `profile` -> digest.
    """

    concept: str
    parts: Mapping[str, str]

    @classmethod
    def of_stages(cls, concept: str, stages: Mapping[str, Mapping[str, Any]], gates: Mapping[str, Any]) -> Inputs:
        """The inputs of all stages together, and the gates that judge their result.

        Args:
            stages: stage -> its inputs; what an earlier stage makes is left open in a later one's.
        """
        parts: dict[str, dict[str, Any]] = {"profile": {"gates": dict(gates)}}
        for stage, inputs in stages.items():
            for name, value in inputs.items():
                parts.setdefault(_PARTS.get(name, "profile"), {})[f"{stage}/{name}"] = value
        return cls(concept, {part: digest_of(content) for part, content in sorted(parts.items())})

    @cached_property
    def key(self) -> str:
        return digest_of({"concept": self.concept, **self.parts})[:40]

    @property
    def tags(self) -> dict[str, str]:
        """Tags of a version, or of a run; the key stands last: with it they are complete."""
        return {**{f"{PREFIX}{part}": digest for part, digest in self.parts.items()}, KEY: self.key}

    def differences(self, tags: Mapping[str, str]) -> list[str]:
        """The parts in which tagged inputs differ from these."""
        return [part for part, digest in self.parts.items() if tags.get(f"{PREFIX}{part}") != digest]


class Registered(Protocol):
    """What the planner reads of a registered version (`components.tracking.registry.Version`)."""

    @property
    def number(self) -> int: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def status(self) -> str: ...


@dataclass(frozen=True)
class Failures:
    """Failed runs of a concept, by the key of their inputs."""

    count: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What is to be done for one concept, and why.

    Attributes:
        version: the version that is reused or retired.
        refused: the version that is reused is one that its gates refused.
    """

    name: str
    action: Action
    reason: str
    version: int | None = None
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "action": self.action, "reason": self.reason}


def decide(wanted: Inputs, versions: Sequence[Registered], failures: Failures, *, quarantine_after: int) -> Decision:
    """The decision for a concept whose data is there.

    Args:
        versions: its registered versions, newest first.
        failures: the failed runs with these inputs.
        quarantine_after: as many of them put the concept into quarantine.
    """
    champion = next((each for each in versions if "champion" in each.aliases), None)
    same = [each for each in versions if each.tags.get(KEY) == wanted.key and BROKEN not in each.tags]
    if same:
        settled = _settled(wanted.concept, same[0], champion)
        if settled is not None:
            return settled
    if failures.count >= quarantine_after:
        times = "once" if failures.count == 1 else f"{failures.count} times"
        reason = f"failed {times} with the same data and profile: {failures.reason}"
        return Decision(wanted.concept, "quarantined", reason)
    if same:
        reason = f"version {same[0].number} of these inputs is not settled: {_unsettled(same[0])}"
    else:
        reason = _changed(wanted, versions, champion)
    return Decision(wanted.concept, "train", reason)


def _settled(name: str, version: Registered, champion: Registered | None) -> Decision | None:
    """Why nothing is to be done though nothing changed, or None: interrupted, or to be judged again."""
    facts = f"data, base, profile and method are those of version {version.number}"
    if champion is not None and champion.number == version.number:
        return Decision(name, "reuse", f"{facts}, the champion", version.number)
    if "promotion/rolled_back" in version.tags:
        mend = f"`purecc models promote {name} {version.number}` brings it back"
        return Decision(name, "reuse", f"{facts}, which was rolled back from ({mend})", version.number)
    against = champion.tags.get("adapter/digest", "") if champion is not None else ""
    if version.status == "refused" and version.tags.get("gate/against", "") == against:
        reason = f"{facts}, which is refused: {version.tags.get('gate/refused', '')}"
        return Decision(name, "reuse", reason, version.number, refused=True)
    return None


def _unsettled(version: Registered) -> str:
    if version.status == "passed":
        return "it passed its gates and is not the champion"
    if version.status == "refused":
        return "it was refused against another champion"
    return "it was never judged"


def _changed(wanted: Inputs, versions: Sequence[Registered], champion: Registered | None) -> str:
    if not versions:
        return "no version is registered"
    nearest = champion or versions[0]
    what = f"version {nearest.number}{', the champion' if champion else ''}"
    if BROKEN in nearest.tags:
        return f"{what} is damaged: {nearest.tags[BROKEN]}"
    if KEY not in nearest.tags:
        return f"{what} does not say what it was made from"
    return f"changed since {what}: {', '.join(wanted.differences(nearest.tags))}"


def retirements(recorded: Iterable[str], champions: Mapping[str, int]) -> list[Decision]:
    """Champions of concepts that the data no longer holds.

    Args:
        recorded: the concepts that the version of the data names.
        champions: concept -> version of its champion.
    """
    left = set(champions) - set(recorded)
    return [
        Decision(name, "retire", "its data is no longer in data.dvc; its champion stays a version", champions[name])
        for name in sorted(left)
    ]


def unreadable(name: str, problem: str) -> Decision:
    """The decision for a concept whose data is wrong: nothing until it changes."""
    return Decision(name, "quarantined", f"its data is not valid: {problem}")


def to_do(plan: Collection[Decision]) -> list[Decision]:
    """What a run has to do something for."""
    return [decision for decision in plan if decision.action in ("train", "retire")]
