"""Which version consumers get: the champion alias, moved only to a version that is whole and passed its gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import PureCCError
from components.files import digest_of
from components.settings import Gate
from components.tracking import registry
from components.tracking.gates import GateReport
from components.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, model_name
from components.tracking.store import Store


class PromotionRefused(PureCCError):
    """A version may not become the champion; the champion is untouched."""


@dataclass(frozen=True)
class Check:
    """One verified property of a version."""

    version: int
    aliases: tuple[str, ...]
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "aliases": list(self.aliases), "ok": self.ok, "detail": self.detail}


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
    store: Store, concept: str, number: int, report: GateReport, *, key: str, against: str | None
) -> None:
    """Tag a version with its gates' outcome.

    Args:
        key: see `judgement_key`.
        against: content digest of the champion that was judged against.
    """
    tags = {
        "gate/status": "passed" if report.passed else "refused",
        "gate/table": json.dumps(report.to_json(), separators=(",", ":")),
        "gate/key": key,
        "gate/against": against or "",
    }
    if not report.passed:
        tags["gate/refused"] = report.refusal
    else:
        known = registry.version(store, concept, number)
        if "gate/refused" in known.tags:
            store.client.delete_model_version_tag(model_name(concept), str(number), "gate/refused")
    registry.set_tags(store, concept, number, tags)


class ChampionChanged(PureCCError):
    """Another run promoted meanwhile: the judgement has to be made again."""


def promote(store: Store, concept: str, number: int, *, judged: tuple[int | None] | None = None) -> int | None:
    """Make a version the champion and return the version it replaces (None: there was none).

    The bytes are fetched and verified first; the alias moves last. Promoting the champion again changes nothing.

    Args:
        judged: the champion that the version was judged against, as a 1-tuple; not given: any.

    Raises:
        ChampionChanged: the champion is another than `judged`.
        InvalidInput: no such version.
        IntegrityError: its bytes are not what was registered.
        PromotionRefused: it was never judged, or its gates refused it.
    """
    with store.lock(f"registry-{concept}"):
        candidate = registry.version(store, concept, number)
        if candidate.status != "passed":
            reason = candidate.tags.get("gate/refused", "its gates were never judged: run purecc customize")
            raise PromotionRefused(f"{model_name(concept)} version {number} is not promoted: {reason}")
        with registry.adapter_folder(store, concept, number):
            pass
        champion = registry.aliases(store, concept).get(CHAMPION)
        if judged is not None and champion not in (number, judged[0]):
            raise ChampionChanged(f"{model_name(concept)}: version {champion} became the champion meanwhile")
        if champion != number:
            if champion is not None:
                registry.set_tags(store, concept, number, {"promotion/replaced": str(champion)})
                _alias(store, concept, PREVIOUS, champion)
            _alias(store, concept, CHAMPION, number)
        _untag(store, concept, number, "promotion/rolled_back")
        if registry.aliases(store, concept).get(CHALLENGER) == number:
            store.client.delete_registered_model_alias(model_name(concept), CHALLENGER)
        return champion if champion != number else None


def rollback(store: Store, concept: str) -> tuple[int, int]:
    """Give the champion alias back to the previous version; returns (from, to).

    Raises:
        InvalidInput: nothing is registered.
        PromotionRefused: there is no champion, or no previous version.
        IntegrityError: the previous version is no longer whole.
    """
    registry.require_registered(store, concept)
    with store.lock(f"registry-{concept}"):
        found = registry.aliases(store, concept)
        champion, previous = found.get(CHAMPION), found.get(PREVIOUS)
        if champion is None or previous is None or champion == previous:
            raise PromotionRefused(f"{model_name(concept)} has no previous champion to go back to")
        with registry.adapter_folder(store, concept, previous):
            pass
        registry.set_tags(store, concept, champion, {"promotion/rolled_back": "true"})
        _alias(store, concept, CHAMPION, previous)
        before = registry.version(store, concept, previous).tags.get("promotion/replaced")
        known = {each.number for each in registry.versions(store, concept)}
        if before is not None and int(before) in known and int(before) != previous:
            _alias(store, concept, PREVIOUS, int(before))
        else:
            store.client.delete_registered_model_alias(model_name(concept), PREVIOUS)
        return champion, previous


def verify(store: Store, concept: str, number: int | None = None) -> list[Check]:
    """Check the bytes of one version, or of every version that bears an alias.

    Raises:
        InvalidInput: nothing is registered, or not that version.
    """
    registry.require_registered(store, concept)
    if number is not None:
        chosen = [registry.version(store, concept, number)]
    else:
        everything = registry.versions(store, concept)
        chosen = [each for each in everything if each.aliases] or everything[:1]
    checks = []
    for each in chosen:
        try:
            with registry.adapter_folder(store, concept, each.number) as folder:
                digest = registry.content_digest(folder)
            problem = _problem(each)
            detail = problem or f"every file matches its digest; content {digest[:12]}"
            checks.append(Check(each.number, each.aliases, problem is None, detail))
        except PureCCError as error:
            checks.append(Check(each.number, each.aliases, False, str(error)))
    return checks


def _problem(version: registry.Version) -> str | None:
    if CHAMPION in version.aliases and version.status != "passed":
        return f"is the champion though its gates say {version.status!r}"
    return None


def _alias(store: Store, concept: str, alias: str, number: int) -> None:
    store.client.set_registered_model_alias(model_name(concept), alias, str(number))


def _untag(store: Store, concept: str, number: int, key: str) -> None:
    if key in registry.version(store, concept, number).tags:
        store.client.delete_model_version_tag(model_name(concept), str(number), key)
