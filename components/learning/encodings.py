"""Encodings of texts and images, kept by digest and used again by later stages and runs.

`<project>/.purecc/encodings/<key>/` holds what one call of an encoder made, with a manifest. The key names everything
that the bytes depend on, the other texts of the call included: rounding depends on the batch, and a training that goes
on has to find the very bytes that it started from. What is damaged is made again. All of it is safe to delete.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.errors import IntegrityError, InvalidInput
from components.files import atomic_folder, digest_of, verify_manifest
from components.settings import project_root

logger = logging.getLogger(__name__)

_TENSORS, _ROWS = "encoding.safetensors", "concept_rows"


def encodings_folder() -> Path | None:
    """Where encodings are kept; None outside of a project."""
    try:
        return project_root() / ".purecc" / "encodings"
    except InvalidInput:
        return None


class Encodings:
    """What encoders of a base have made before.

    Args:
        folder: where it is kept; None: nowhere, everything is made anew.
    """

    def __init__(self, backbone: SD3Backbone, folder: Path | None):
        self._backbone, self._folder = backbone, folder

    def latent(self, digest: str, make: Callable[[], Tensor]) -> Tensor:
        """The latent (C, H, W) of the image with this digest."""
        settings = self._backbone.settings

        def made() -> tuple[dict[str, Tensor], Any]:
            return {"latent_CHW": make()}, None

        found, _ = self._kept({"image": digest, "resolution": settings.resolution}, made)
        return found["latent_CHW"]

    def texts(self, prompts: Sequence[str], make: Callable[[], TextEncoding]) -> TextEncoding:
        """The encoding of these texts, in this order."""
        settings = self._backbone.settings

        def made() -> tuple[dict[str, Tensor], Any]:
            encoded = make()
            rows = [{name: list(each) for name, each in where.items()} for where in encoded.concept_rows]
            return {"context_BLD": encoded.context_BLD, "pooled_BP": encoded.pooled_BP}, rows

        what = {
            "texts": list(prompts),
            "max_sequence_length": settings.max_sequence_length,
            "placeholder": settings.placeholder,
        }
        found, rows = self._kept(what, made)
        concept_rows = tuple({name: tuple(each) for name, each in where.items()} for where in rows)
        return TextEncoding(found["context_BLD"], found["pooled_BP"], concept_rows)

    def _kept(
        self, what: dict[str, Any], make: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        if self._folder is None:
            return make()
        device = self._backbone.device
        known = {"base": self._backbone.fingerprint, "dtype": self._backbone.settings.dtype, "device": device.type}
        folder = self._folder / digest_of({"format": 1, **known, **what})[:40]
        if folder.is_dir():
            try:
                verify_manifest(folder)
                with safe_open(folder / _TENSORS, framework="pt", device=str(device)) as opened:
                    tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                    return tensors, json.loads(opened.metadata()[_ROWS])
            except (IntegrityError, SafetensorError, OSError, ValueError, LookupError) as error:
                logger.warning("a kept encoding is not used, it is damaged: %s", error)
        tensors, rows = make()
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_folder(folder) as partial:
            save_file(stored, partial / _TENSORS, metadata={_ROWS: json.dumps(rows)})
        return tensors, rows
