"""Where the numbers of a training go; passed in, so that learning knows no tracking system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Receives metrics and images; may buffer until `flush`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_image(self, name: str, path: Path) -> None: ...

    def flush(self) -> None: ...


class NullTracker:
    """Keeps nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_image(self, name: str, path: Path) -> None:
        pass

    def flush(self) -> None:
        pass
