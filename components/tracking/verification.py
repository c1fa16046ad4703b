"""Is a version still what it was when it was promoted? Bytes, statements, origin and signature, one by one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import PureCCError
from components.files import digest_of, folder_digests
from components.provenance import PROVENANCE
from components.tracking import blessings, bundles, registry, signing
from components.tracking.registry import CHAMPION, RECORDING, RECORDING_DIGEST, Version, model_name
from components.tracking.store import Store


@dataclass(frozen=True)
class Check:
    """One verified version.

    Attributes:
        detail: the first problem, or what was found right.
        passed: what was looked at and found right: `bytes`, `gates`, `servability`, `approval`, `data`, `base`,
            `recording`, `signature`; of a bundle `manifest`, `pins`, `adapters`, `versions`; what a version does not
            have is not looked at, and a statement that refuses it is not right.
        problems: what was found wrong.
    """

    version: int
    aliases: tuple[str, ...]
    ok: bool
    detail: str
    passed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "aliases": list(self.aliases),
            "ok": self.ok,
            "detail": self.detail,
            "passed": list(self.passed),
            "problems": list(self.problems),
        }


def verify(store: Store, concept: str, number: int | None = None, *, public_key: Path | None = None) -> list[Check]:
    """Check one version, or every version that bears an alias; of a bundle its files and every version that it pins.

    The champion also has to be one that may be it: every blessing that was asked for is there and says so. A version
    that was refused and is not the champion is as right as any.

    Args:
        public_key: the bytes have to be signed with its pair; default: the configured key, if any.

    Raises:
        InvalidInput: nothing is registered, or not that version.
    """
    registry.require_registered(store, concept)
    if number is not None:
        chosen = [registry.version(store, concept, number)]
    else:
        everything = registry.versions(store, concept)
        chosen = [each for each in everything if each.aliases] or everything[:1]
    check = _check_bundle if concept == bundles.NAME else _check
    return [check(store, version, public_key) for version in chosen]


def _check_bundle(store: Store, version: Version, public_key: Path | None) -> Check:
    problems = bundles.problems_of(store, version)
    passed = [] if problems else ["manifest", "pins", "adapters"]
    if CHAMPION in version.aliases and version.status != "passed":
        problems.append(f"is the champion though its checks say {version.status!r}")
    pinned = [pin for pin in bundles.pins(version) if pin.version is not None]
    wrong = [problem for pin in pinned for problem in _pin_problems(store, pin, public_key)]
    passed += ["versions"] if pinned and not wrong else []
    problems += wrong
    detail = "; ".join(problems) or f"{', '.join(passed)}: as registered; {len(bundles.pins(version))} concepts"
    return Check(version.number, version.aliases, not problems, detail, tuple(passed), tuple(problems))


def _pin_problems(store: Store, pin: bundles.Pin, public_key: Path | None) -> list[str]:
    """What is wrong with the registered version that a bundle pins."""
    try:
        pinned = registry.version(store, pin.name, pin.version or 0)
    except PureCCError as error:
        return [str(error)]
    problems = _check(store, pinned, public_key).problems
    found = [f"{model_name(pin.name)} version {pinned.number}: {each}" for each in problems]
    if pinned.tags.get("adapter/digest") != pin.adapter:
        found.append(f"{model_name(pin.name)} version {pinned.number} holds another adapter than was pinned")
    return found


def _check(store: Store, version: Version, public_key: Path | None) -> Check:
    problems: list[str] = []
    passed: list[str] = []
    digest = ""
    try:
        with registry.adapter_folder(store, version.concept, version.number) as folder:
            digest = registry.content_digest(folder)
            passed.append("bytes")
            for name, look in _LOOKS.items():
                _note(name, look, version, folder, passed, problems)
            signed = functools.partial(_signature, public_key=public_key)
            _note("signature", signed, version, folder, passed, problems)
    except PureCCError as error:
        problems.append(str(error))
    if RECORDING_DIGEST in version.tags:
        problem = _recording_problem(store, version)
        passed += [] if problem else ["recording"]
        problems += [problem] if problem else []
    refusal = blessings.refusal(version) if CHAMPION in version.aliases else None
    # a report that was altered is told already
    if refusal is not None and not any(problem in refusal for problem in problems):
        problems.append(f"is the champion though it may not be: {refusal}")
    detail = "; ".join(problems) or f"{', '.join(passed)}: as registered; content {digest[:12]}"
    return Check(version.number, version.aliases, not problems, detail, tuple(passed), tuple(problems))


def _note(
    name: str,
    look: Callable[[Version, Path], str | None],
    version: Version,
    folder: Path,
    passed: list[str],
    problems: list[str],
) -> None:
    try:
        found = look(version, folder)
    except PureCCError as error:
        found = str(error)
    if found:
        problems.append(found)
    elif found is None:
        passed.append(name)


def _statement(keys: Sequence[str]) -> Callable[[Version, Path], str | None]:
    """Looks at a statement that a version bears: None where it is bound to the version and says `passed`."""

    def look(version: Version, folder: Path) -> str | None:
        return blessings.binding_problem(version, keys) or (None if version.tags.get(keys[0]) == "passed" else "")

    return look


def _provenance(folder: Path, section: str, key: str) -> str | None:
    try:
        return str(json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))[section][key])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _data(version: Version, folder: Path) -> str | None:
    return _same("data", _provenance(folder, "data", "sha256"), version.tags.get("data/fingerprint"))


def _base(version: Version, folder: Path) -> str | None:
    stated = version.tags.get("base/fingerprint")
    problem = _same("base", _provenance(folder, "base", "fingerprint"), stated)
    embeddings = folder / "concept_embeddings.safetensors"
    if problem is not None or not embeddings.is_file():
        return problem
    return _same("base", _metadata(embeddings).get("base_fingerprint"), stated)


def _metadata(file: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header, which has been found well-formed."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return dict(json.loads(stream.read(length)).get("__metadata__") or {})


def _same(what: str, found: str | None, registered: str | None) -> str | None:
    """None: equal; empty: there is nothing to compare."""
    if not found or not registered:
        return ""
    if found == registered:
        return None
    return f"made from the {what} {str(found)[:12]}, registered with {registered[:12]}"


def _signature(version: Version, folder: Path, public_key: Path | None) -> str | None:
    return None if signing.require_signed(folder, version.tags.get(signing.TAG), public_key) else ""


def _recording_problem(store: Store, version: Version) -> str | None:
    source = f"models:/{model_name(version.concept)}/{version.number}"
    try:
        with registry.fetched(store, source, RECORDING) as folder:
            found = digest_of(folder_digests(folder))
    except PureCCError as error:
        return str(error)
    return None if found == version.tags[RECORDING_DIGEST] else f"{source}: its recording was changed"


_LOOKS: dict[str, Callable[[Version, Path], str | None]] = {
    "gates": _statement(blessings.QUALITY),
    "servability": _statement(blessings.SERVABILITY),
    "approval": _statement(blessings.APPROVAL),
    "data": _data,
    "base": _base,
}
