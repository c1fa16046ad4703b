"""Which version consumers get: the champion alias, moved only to a version that is whole and blessed.

The way of an adapter: staged with a manifest and registered (`components.tracking.registry`), judged by its gates
against the champion (`record_judgement`), loaded and drawn with by a fresh process (`components.tracking.servability`),
and then promoted under the concept's lock (`components.tracking.succession` says how the aliases move).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.files import digest_of
from components.settings import Gate
from components.tracking import blessings, registry
from components.tracking.blessings import PromotionRefused as PromotionRefused
from components.tracking.gates import GateReport
from components.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Version, model_name
from components.tracking.store import Store
from components.tracking.succession import ChampionChanged as ChampionChanged
from components.tracking.succession import Intent, move, rollback_intent, settle
from components.tracking.verification import Check as Check
from components.tracking.verification import verify as verify

_ATTEMPTS = 30


class StaleJudgement(PromotionRefused):
    """A version was judged against another champion than the one that it would replace."""


def judgement_key(metrics: Mapping[str, float], gates: Mapping[str, Gate], champion: str | None) -> str:
    """Digest of what a judgement depends on, by which an unchanged one is recognised.

    Args:
        champion: content digest of the champion that was judged against.
    """
    bounds = {metric: gate.model_dump(mode="json") for metric, gate in gates.items()}
    return digest_of(
        {"metrics": {key: repr(value) for key, value in metrics.items()}, "gates": bounds, "champion": champion}
    )


def record_judgement(
    store: Store,
    concept: str,
    number: int,
    report: GateReport,
    *,
    key: str,
    against: str | None,
    requires: Sequence[str] = (),
) -> None:
    """Tag a version with its gates' outcome, bound to its content.

    Args:
        key: see `judgement_key`.
        against: content digest of the champion that was judged against.
        requires: blessings that the profile asks for besides the gates: `servability`, `approval`.
    """
    known = registry.version(store, concept, number)
    tags = {
        "gate/status": "passed" if report.passed else "refused",
        "gate/table": json.dumps(report.to_json(), separators=(",", ":")),
        "gate/key": key,
        "gate/against": against or "",
        "gate/requires": json.dumps(list(requires)),
    }
    tags = blessings.bound(known.tags.get("adapter/digest"), tags, blessings.QUALITY)
    if not report.passed:
        tags["gate/refused"] = report.refusal
    else:
        registry.remove_tag(store, concept, number, "gate/refused")
    registry.set_tags(store, concept, number, tags)


def promote(
    store: Store,
    concept: str,
    number: int,
    *,
    judged: tuple[int | None] | None = None,
    reason: str | None = None,
    public_key: Path | None = None,
) -> int | None:
    """Make a version the champion and return the version it replaces (None: there was none, or it is the champion).

    A move that a killed process left half-done is completed or undone first. The bytes are fetched and verified, then
    the aliases move. Promoting the champion again changes nothing.

    Args:
        judged: the champion that the version was judged against, as a 1-tuple; not given: its judgement says.
        reason: why a version becomes the champion that was judged against another one than the present, which is
            refused without a reason; kept with the version.
        public_key: the bytes have to be signed with its pair; default: the configured key, if any.

    Raises:
        ChampionChanged: the champion is another than `judged`.
        StaleJudgement: it is another than the judgement speaks of, and no reason is given.
        InvalidInput: no such version.
        IntegrityError: its bytes are not what was registered.
        PromotionRefused: a blessing is missing, was refused, or speaks of another version.
        LockNotTaken: another process holds the concept.
    """
    with store.lock(f"registry-{concept}"):
        settle(store, concept, public_key=public_key)
        candidate = registry.version(store, concept, number)
        if (problem := blessings.refusal(candidate)) is not None:  # the cheap answer first
            raise PromotionRefused(f"{model_name(concept)} version {number} is not promoted: {problem}")
        with registry.adapter_folder(store, concept, number) as folder:
            blessings.require(candidate, folder, public_key)
        found = registry.aliases(store, concept)
        champion = found.get(CHAMPION)
        if judged is not None and champion not in (number, judged[0]):
            raise ChampionChanged(f"{model_name(concept)}: version {champion} became the champion meanwhile")
        if judged is None and reason is None:
            _require_judged_against(store, candidate, champion)
        if champion != number:
            why = reason or "every gate is passed"
            move(store, concept, Intent("promotion", champion, found.get(PREVIOUS), number, champion, why))
            return champion
        registry.remove_tag(store, concept, number, "promotion/rolled_back")
        if found.get(CHALLENGER) == number:
            store.client.delete_registered_model_alias(model_name(concept), CHALLENGER)
        return None


def _require_judged_against(store: Store, candidate: Version, champion: int | None) -> None:
    """Refuse a version whose gates compared it with another champion than the present one.

    Where there is no champion, it replaces nothing that could be better.
    """
    if champion is None or champion == candidate.number:
        return
    against = candidate.tags.get("gate/against", "")
    if against == registry.version(store, candidate.concept, champion).tags.get("adapter/digest"):
        return
    judged = next(
        (
            f"version {each.number}"
            for each in registry.versions(store, candidate.concept)
            if each.tags.get("adapter/digest") == against
        ),
        "a version that is gone" if against else "no champion",
    )
    raise StaleJudgement(
        f"{model_name(candidate.concept)} version {candidate.number} is not promoted: it was judged against {judged}, "
        f"and version {champion} is the champion now: judge it again with purecc customize {candidate.concept}, or "
        "promote it all the same with --reason TEXT"
    )


def promote_best(
    store: Store,
    concept: str,
    number: int,
    judge: Callable[[Version | None], GateReport],
    *,
    public_key: Path | None = None,
) -> tuple[GateReport, int | None]:
    """Judge a version against the champion and promote it if it passes; again, if another took the place meanwhile.

    Of many that do this at once each either becomes the champion or is refused by its gates against a better one.

    Args:
        judge: judges against the given champion (None: there is none other) and records the judgement.

    Returns:
        the report, and the version that was replaced (None: none, or it was refused).

    Raises:
        ChampionChanged: the champion changed at every attempt.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        champion = registry.by_alias(store, concept)
        against = champion if champion is not None and champion.number != number else None
        report = judge(against)
        if not report.passed:
            return report, None
        try:
            expected = (against.number if against else None,)
            return report, promote(store, concept, number, judged=expected, public_key=public_key)
        except ChampionChanged:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def rollback(
    store: Store, concept: str, reason: str = "no reason was given", *, public_key: Path | None = None
) -> tuple[int, int]:
    """Give the champion alias back to the previous version; returns (from, to).

    Args:
        reason: kept with the version that is left.
        public_key: the version it goes back to has to be signed with its pair; default: the configured key, if any.

    Raises:
        InvalidInput: nothing is registered.
        PromotionRefused: there is no champion, no previous version, or that one may not be the champion.
        IntegrityError: the previous version is no longer whole.
        LockNotTaken: another process holds the concept.
    """
    registry.require_registered(store, concept)
    with store.lock(f"registry-{concept}"):
        settle(store, concept, public_key=public_key)
        intent = rollback_intent(store, concept, reason)
        if intent is None or intent.source is None:
            raise PromotionRefused(f"{model_name(concept)} has no previous champion to go back to")
        with registry.adapter_folder(store, concept, intent.target) as folder:
            blessings.require(registry.version(store, concept, intent.target), folder, public_key)
        move(store, concept, intent)
        return intent.source, intent.target
