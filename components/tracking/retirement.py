"""Taking a concept out of service whose data is gone: no version is deleted, none is the champion any more."""

from __future__ import annotations

import time

from components.tracking import registry
from components.tracking.registry import CHALLENGER, CHAMPION, model_name
from components.tracking.store import Store

RETIRED = "promotion/retired"


def retire(store: Store, concept: str, number: int, reason: str) -> bool:
    """Take the champion alias from a version, and the challenger's; says whether it was still the champion.

    The tag `promotion/retired` says when and why. When the data comes back, the next run promotes the version again.
    """
    with store.lock(f"registry-{concept}"):
        aliases = registry.aliases(store, concept)
        if aliases.get(CHAMPION) != number:
            return False
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        registry.set_tags(store, concept, number, {RETIRED: f"{stamp} {reason}"})
        for alias in (CHALLENGER, CHAMPION):  # the champion's last: killed before it, the next run does it again
            if alias in aliases:
                store.client.delete_registered_model_alias(model_name(concept), alias)
        return True
