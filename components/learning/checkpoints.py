"""Checkpoints of a training: written atomically, verified before they are trusted, resumed exactly or refused.

A checkpoint is a folder: `tensors.safetensors` (parameters, optimizer moments, moving average), `state.json` and a
manifest. Random state is not part of it: see `components.learning.randomness`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from components.errors import IntegrityError, InvalidInput
from components.files import atomic_folder, verify_manifest, write_json

logger = logging.getLogger(__name__)

_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after `step` steps.

    Attributes:
        tensors: name -> tensor, on the CPU.
        scaler: state of the gradient scaler (fp16 only).
    """

    step: int
    tensors: Mapping[str, Tensor]
    scaler: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training below a folder; the newest one is kept.

    Args:
        folder: where they lie; made when the first is written.
        key: digest of everything the training depends on.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the older ones."""
        target = self.folder / f"{checkpoint.step:08d}"
        with atomic_folder(target) as partial:
            tensors = {name: value.detach().to("cpu").contiguous() for name, value in checkpoint.tensors.items()}
            save_file(tensors, partial / _TENSORS)
            write_json(partial / _STATE, {"step": checkpoint.step, "key": self.key, "scaler": dict(checkpoint.scaler)})
        for old in self._folders():
            if old.name < target.name:
                shutil.rmtree(old)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; remains of interrupted writes are removed.

        Raises:
            InvalidInput: it belongs to a training with other inputs or settings.
        """
        if not self.folder.is_dir():
            return None
        for remains in (*self.folder.glob(".*.partial"), *self.folder.glob(".*.retired")):
            shutil.rmtree(remains, ignore_errors=True)
        for folder in reversed(self._folders()):
            try:
                verify_manifest(folder)
            except IntegrityError as error:
                logger.warning("damaged checkpoint is not used: %s", error)
                shutil.rmtree(folder)
                continue
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            if state["key"] != self.key:
                raise InvalidInput(
                    "a checkpoint of a training with other data, settings or base lies here",
                    file=folder,
                    mend="remove the folder, or use another work folder",
                )
            return Checkpoint(int(state["step"]), load_file(folder / _TENSORS), state["scaler"])
        return None

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit())
