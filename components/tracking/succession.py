"""The move of the aliases `previous` and `champion`, such that a crash at any point can be completed or undone.

MLflow sets one alias at a time and the last writer wins. So a move is first written down as an intent (a tag of the
registered model, hence in the store's database, seen by every host), then carried out, read back, and recorded as the
state that holds; then the intent is removed. All of it happens under the concept's lock. Order is told by a counter
that is kept with the state, never by a clock.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from components.errors import PureCCError
from components.tracking import blessings, registry
from components.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Version, model_name
from components.tracking.retirement import RETIRED
from components.tracking.store import Store

INTENT, STATE = "promotion/intent", "promotion/state"


class ChampionChanged(PureCCError):
    """The champion is not, or no longer, the one that the move started from: the judgement has to be made again."""


@dataclass(frozen=True)
class Intent:
    """One move of the aliases.

    Attributes:
        kind: why it moves.
        source, source_previous: champion and previous before it; None: there is none.
        target, target_previous: the same after it.
        reason: in words, for people.
        id: tells two moves apart that say the same.
    """

    kind: Literal["promotion", "rollback", "repair"]
    source: int | None
    source_previous: int | None
    target: int
    target_previous: int | None
    reason: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class State:
    """What the last move left: champion, previous, and how many moves there were."""

    champion: int
    previous: int | None
    sequence: int


@dataclass(frozen=True)
class Repair:
    """What a reconciliation did.

    Attributes:
        action: `completed` or `undone` (a half-done move), `restored` (an alias that was deleted, or set to a version
            that may not bear it), `adopted` (an alias set by hand to a version that may), `replaced` (a champion
            whose bytes are gone), `lost` (there is no version left that may be the champion).
        champion: who bears the alias now.
    """

    concept: str
    action: Literal["completed", "undone", "restored", "adopted", "replaced", "lost"]
    champion: int | None
    detail: str

    def to_json(self) -> dict[str, object]:
        return {"name": self.concept, **{key: value for key, value in asdict(self).items() if key != "concept"}}


def pending(store: Store, concept: str) -> Intent | None:
    """The move that was begun and not finished, if any."""
    text = registry.model_tags(store, concept).get(INTENT)
    return Intent(**json.loads(text)) if text else None


def state(store: Store, concept: str) -> State | None:
    """What the last finished move left; None where there was none."""
    text = registry.model_tags(store, concept).get(STATE)
    return State(**json.loads(text)) if text else None


def move(store: Store, concept: str, intent: Intent) -> None:
    """Carry a move out; the caller holds the concept's lock and has checked the target.

    Raises:
        ChampionChanged: the aliases were not what the intent starts from, or someone else moved them meanwhile.
    """
    found = registry.aliases(store, concept)
    if (found.get(CHAMPION), found.get(PREVIOUS)) != (intent.source, intent.source_previous):
        raise ChampionChanged(f"{model_name(concept)}: version {found.get(CHAMPION)} became the champion meanwhile")
    registry.set_model_tag(store, concept, INTENT, json.dumps(asdict(intent)))
    _finish(store, concept, intent)


def _finish(store: Store, concept: str, intent: Intent) -> None:
    """Everything after the intent's record; each step may have been done already."""
    current = pending(store, concept)
    if current is None or current.id != intent.id:  # a lock that ran out let another one in
        raise ChampionChanged(f"{model_name(concept)}: another promotion began meanwhile")
    _set_alias(store, concept, PREVIOUS, intent.target_previous)
    _set_alias(store, concept, CHAMPION, intent.target)
    found = registry.aliases(store, concept)
    if (found.get(CHAMPION), found.get(PREVIOUS)) != (intent.target, intent.target_previous):
        raise ChampionChanged(f"{model_name(concept)}: the aliases read back as {found}, set was {intent}")
    before = state(store, concept)
    sequence = before.sequence + 1 if before else 1
    tags = {"promotion/reason": intent.reason, "promotion/sequence": str(sequence)}
    if intent.kind == "promotion" and intent.source is not None:
        tags["promotion/replaced"] = str(intent.source)
    registry.set_tags(store, concept, intent.target, tags)
    registry.remove_tag(store, concept, intent.target, "promotion/rolled_back")
    registry.remove_tag(store, concept, intent.target, RETIRED)
    if intent.kind == "rollback" and intent.source is not None:
        registry.set_tags(store, concept, intent.source, {"promotion/rolled_back": intent.reason})
    if found.get(CHALLENGER) == intent.target:
        _set_alias(store, concept, CHALLENGER, None)
    left = State(intent.target, intent.target_previous, sequence)
    registry.set_model_tag(store, concept, STATE, json.dumps(asdict(left)))
    registry.remove_model_tag(store, concept, INTENT)


def reconcile(
    store: Store, concept: str, *, replace_broken: bool = False, public_key: Path | None = None
) -> Repair | None:
    """Complete or undo a half-done move and put deleted or foreign aliases right; None: nothing was wrong.

    Meant to be called when a process starts; every promotion and rollback does it first.

    Args:
        replace_broken: also fetch the champion's bytes, and where they are gone or changed go back to the last
            champion that is whole. Not done unasked: a store that does not answer looks much the same.
        public_key: what may be the champion has to be signed with its pair; default: the configured key, if any.

    Raises:
        LockNotTaken: another process holds the concept.
    """
    with store.lock(f"registry-{concept}"):
        return settle(store, concept, replace_broken=replace_broken, public_key=public_key)


def settle(
    store: Store, concept: str, *, replace_broken: bool = False, public_key: Path | None = None
) -> Repair | None:
    """`reconcile`, for a caller that holds the lock."""
    intent = pending(store, concept)
    if intent is not None:
        return _settle_intent(store, concept, intent, public_key)
    known, found = state(store, concept), registry.aliases(store, concept)
    if known is None:
        return None
    champion = found.get(CHAMPION)
    if champion is None and _retired(store, concept, known.champion):
        return None
    if champion != known.champion:
        problem = "the alias champion was deleted" if champion is None else f"version {champion} was set from outside"
        if champion is not None and problem_of(store, concept, champion, public_key) is None:
            previous = found.get(PREVIOUS)
            left = State(champion, previous, known.sequence + 1)
            registry.set_model_tag(store, concept, STATE, json.dumps(asdict(left)))
            return Repair(concept, "adopted", champion, f"{problem}; it passed its gates and is whole")
        candidates = [known.champion, *_ancestors(store, concept, known)]
        return _go_back(store, concept, "restored", problem, candidates, public_key)
    if replace_broken and (broken := problem_of(store, concept, champion, public_key)) is not None:
        problem, candidates = f"version {champion}: {broken}", _ancestors(store, concept, known)
        return _go_back(store, concept, "replaced", problem, candidates, public_key)
    return None


def _retired(store: Store, concept: str, number: int) -> bool:
    """Whether the alias was taken from a version on purpose."""
    return any(version.number == number and RETIRED in version.tags for version in registry.versions(store, concept))


def _settle_intent(store: Store, concept: str, intent: Intent, public_key: Path | None) -> Repair:
    problem = problem_of(store, concept, intent.target, public_key)
    if problem is None:
        _finish(store, concept, intent)
        detail = f"the {intent.kind} of version {intent.target} was cut off and is completed"
        return Repair(concept, "completed", intent.target, detail)
    known = {version.number for version in registry.versions(store, concept)}
    source = intent.source if intent.source in known else None
    previous = intent.source_previous if intent.source_previous in known else None
    _set_alias(store, concept, CHAMPION, source)
    _set_alias(store, concept, PREVIOUS, previous)
    registry.remove_model_tag(store, concept, INTENT)
    detail = f"the {intent.kind} of version {intent.target} was cut off and is undone: {problem}"
    return Repair(concept, "undone", source, detail)


def _go_back(
    store: Store,
    concept: str,
    action: Literal["restored", "replaced"],
    problem: str,
    candidates: list[int],
    public_key: Path | None,
) -> Repair:
    """Make the first candidate that may be it the champion."""
    found = registry.aliases(store, concept)
    for number in candidates:
        if problem_of(store, concept, number, public_key) is not None:
            continue
        previous = next((each for each in candidates[candidates.index(number) + 1 :]), None)
        intent = Intent(
            "repair",
            found.get(CHAMPION),
            found.get(PREVIOUS),
            number,
            previous,
            f"{problem}; version {number} is the last champion that is whole",
        )
        move(store, concept, intent)
        return Repair(concept, action, number, intent.reason)
    detail = f"{problem}; no earlier champion is whole: train it again with purecc customize {concept}"
    return Repair(concept, "lost", found.get(CHAMPION), detail)


def _ancestors(store: Store, concept: str, known: State) -> list[int]:
    """Earlier champions that still exist, the last one first."""
    by_number = {version.number: version for version in registry.versions(store, concept)}
    return [number for number in _chain(by_number, known) if number in by_number]


def _chain(by_number: dict[int, Version], known: State) -> Iterator[int]:
    seen, number = {known.champion}, known.previous
    while number is not None and number not in seen:
        seen.add(number)
        yield number
        replaced = by_number[number].tags.get("promotion/replaced") if number in by_number else None
        number = int(replaced) if replaced else None


def problem_of(store: Store, concept: str, number: int, public_key: Path | None = None) -> str | None:
    """Why a version may not be the champion: its bytes or its statements; None: it may."""
    try:
        with registry.adapter_folder(store, concept, number) as folder:
            blessings.require(registry.version(store, concept, number), folder, public_key)
    except PureCCError as error:
        return str(error)
    return None


def rollback_intent(store: Store, concept: str, reason: str) -> Intent | None:
    """The move back to the champion before this one; None where there is none."""
    found = registry.aliases(store, concept)
    champion, previous = found.get(CHAMPION), found.get(PREVIOUS)
    if champion is None:
        return None
    known = state(store, concept)
    target = previous if previous is not None or known is None else known.previous  # the alias may have been deleted
    ancestors = _ancestors(store, concept, State(champion, target, 0))
    if not ancestors or ancestors[0] != target:
        return None
    before = ancestors[1] if len(ancestors) > 1 else None
    return Intent("rollback", champion, previous, ancestors[0], before, reason)


def _set_alias(store: Store, concept: str, alias: str, number: int | None) -> None:
    if number is not None:
        store.client.set_registered_model_alias(model_name(concept), alias, str(number))
    elif alias in registry.aliases(store, concept):
        store.client.delete_registered_model_alias(model_name(concept), alias)
