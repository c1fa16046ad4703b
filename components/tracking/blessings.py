"""What a version has to show before it may be the champion, each bound by digest to the bytes that it speaks of.

Quality: its gates. Servability: a fresh process that loads and draws as consumers do. By policy also a signature and a
person's approval. A statement is kept as tags of the version; its digest goes over the statement and over the content
digest of the adapter, so that the statement of another version, or one that was altered, does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import IntegrityError, PureCCError
from components.files import digest_of
from components.tracking import signing
from components.tracking.registry import Version, model_name

QUALITY = ("gate/status", "gate/table", "gate/key", "gate/against", "gate/requires")
SERVABILITY = ("servability/status", "servability/facts")
APPROVAL = ("approval/status", "approval/by")


class PromotionRefused(PureCCError):
    """A version may not become the champion; the champion is untouched."""


def statement_digest(adapter: str | None, tags: Mapping[str, str], keys: Sequence[str]) -> str:
    """Digest of a statement about the adapter with this content digest."""
    return digest_of({"adapter": adapter, "statement": {key: tags.get(key) for key in keys}})


def bound(adapter: str | None, tags: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    """The tags of a statement, with the digest that binds them to the adapter (`gate/digest`, ...)."""
    subject = keys[0].partition("/")[0]
    return {**tags, f"{subject}/digest": statement_digest(adapter, tags, keys)}


def binding_problem(version: Version, keys: Sequence[str]) -> str | None:
    """What is wrong with a statement that a version bears; None: nothing, or it bears none."""
    subject = keys[0].partition("/")[0]
    if keys[0] not in version.tags:
        return None
    if version.tags.get(f"{subject}/digest") != statement_digest(
        version.tags.get("adapter/digest"), version.tags, keys
    ):
        return f"its {subject} report speaks of another version or was altered"
    return None


def requirements(version: Version) -> tuple[str, ...]:
    """What the profile that it was judged under asks for besides the gates: servability, approval."""
    return tuple(json.loads(version.tags.get("gate/requires", "[]")))


def refusal(version: Version) -> str | None:
    """Why a version may not be the champion, by its statements alone; None: it may."""
    for keys in (QUALITY, SERVABILITY, APPROVAL):
        problem = binding_problem(version, keys)
        if problem is not None:
            return f"{problem}: judge it again with purecc customize {version.concept}"
    if version.status != "passed":
        return version.tags.get("gate/refused", "its gates were never judged: run purecc customize")
    for subject in requirements(version):
        found = version.tags.get(f"{subject}/status")
        if found != "passed":
            reason = version.tags.get(f"{subject}/refused", "it was not looked at: run purecc customize")
            return f"{subject}: {reason}"
    return None


def require(version: Version, folder: Path, public_key: Path | None = None, *, act: str = "promoted") -> None:
    """Check the statements of a version, and the signature of its bytes where a key is configured.

    Args:
        folder: its adapter folder, verified against manifest and tag.
        public_key: asks for a signature of its pair; default: the configured one, if any.
        act: what is about to be done with it, for the message.

    Raises:
        PromotionRefused: one is missing, refuses it, or speaks of another version.
    """
    where = f"{model_name(version.concept)} version {version.number}"
    reason = refusal(version)
    if reason is not None:
        raise PromotionRefused(f"{where} is not {act}: {reason}")
    try:
        signing.require_signed(folder, version.tags.get(signing.TAG), public_key)
    except IntegrityError as error:
        raise PromotionRefused(f"{where} is not {act}: {error}") from error


def approval_tags(version: Version, *, approved: bool, by: str, note: str) -> dict[str, Any]:
    """A person's answer, as tags of the version."""
    status = "passed" if approved else "refused"
    tags = {"approval/status": status, "approval/by": by, "approval/note": note}
    if not approved:
        tags["approval/refused"] = f"{by or 'a person'} did not agree{f': {note}' if note else ''}"
    return bound(version.tags.get("adapter/digest"), tags, APPROVAL)
