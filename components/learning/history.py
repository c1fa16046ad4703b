"""The metrics of a training: buffered on the device, handed out in batches, exact after a resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.files import write_text
from components.learning.tracker import Tracker


class History:
    """Rows of `history.jsonl` (`step` and metric keys), which also go to the tracker.

    Rows written before the training was interrupted are read again up to the checkpoint's step, later ones are cut off,
    and the tracker gets the kept ones as well: it sees every step once.

    Args:
        file: the history file.
        steps_kept: number of steps done according to the checkpoint.
    """

    def __init__(self, file: Path, tracker: Tracker, *, steps_kept: int):
        self._file, self._tracker = file, tracker
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._started = time.monotonic()
        kept = [row for row in read_history(file) if row["step"] <= steps_kept]
        write_text(file, "".join(_line(row) for row in kept))
        for row in kept:
            self._hand_out(row)

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Keep scalar tensors; nothing is read from the device."""
        self._pending.append((step, dict(metrics)))

    @property
    def due(self) -> bool:
        """Whether a second has passed since the last flush, or many rows wait."""
        return time.monotonic() - self._started >= 1.0 or len(self._pending) >= 100

    def flush(self, extra: Mapping[str, float]) -> tuple[int, str] | None:
        """Write the waiting rows.

        Args:
            extra: metrics that all waiting rows share.

        Returns:
            The first step and key that is not finite, if any; that row and later ones are not written.
        """
        if not self._pending:
            return None
        elapsed = max(time.monotonic() - self._started, 1e-9)
        shared = {"speed/steps_per_second": len(self._pending) / elapsed, **extra}
        keys = list(self._pending[0][1])
        # one transfer for all rows
        values = torch.stack([metrics[key].detach().double() for _, metrics in self._pending for key in keys]).tolist()
        bad, lines = None, []
        for number, (step, _) in enumerate(self._pending):
            measured = dict(zip(keys, values[number * len(keys) : (number + 1) * len(keys)], strict=True))
            bad = next(((step, key) for key, value in measured.items() if not math.isfinite(value)), None)
            if bad is not None:
                break
            row = {"step": step, **measured, **shared}
            lines.append(_line(row))
            self._hand_out(row)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
        self._pending.clear()
        self._started = time.monotonic()
        return bad

    def _hand_out(self, row: Mapping[str, float]) -> None:
        self._tracker.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))


def read_history(file: Path) -> list[dict[str, float]]:
    """The rows of a history file; a last line that was cut off by a crash is left out."""
    if not file.is_file():
        return []
    rows: list[dict[str, float]] = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"
