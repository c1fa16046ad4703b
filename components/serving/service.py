"""Drawing what is asked for: one base in memory, adapters loaded when a prompt first names them."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.concepts.texts import mentions
from components.errors import InvalidInput
from components.serving.requests import ImageRequest
from components.settings import SamplingSettings

Find = Callable[[str], AbstractContextManager[Path]]
"""Concept -> its adapter folder, verified; raises InvalidInput where there is none."""


@dataclass(frozen=True)
class Drawn:
    """One image.

    Attributes:
        png: the file's bytes.
        facts: everything that it depends on, its digest, and the seconds it took.
    """

    png: bytes
    facts: dict[str, Any]


def to_png(image_CHW: Tensor) -> bytes:
    """Pixels in [-1, 1] as the bytes of a lossless PNG file, clipped and rounded to 8 bits."""
    from PIL import Image

    pixels_HWC = ((image_CHW.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.numpy(), "RGB").save(stream, format="PNG")
    return stream.getvalue()


class ImageService:
    """Draws requests one after the other, so that an image never depends on what else is asked for.

    Args:
        backbone: the base.
        sampling: steps and guidance where a request states none.
        find: gives the adapter of a concept that is not loaded yet; None: only what `add` loaded is known.
        keep: adapters that stay loaded; the one that was not used for longest goes first.
    """

    def __init__(self, backbone: SD3Backbone, sampling: SamplingSettings, find: Find | None = None, *, keep: int = 16):
        self.backbone, self._sampling, self._find, self._keep = backbone, sampling, find, keep
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.RLock()  # one model: one image at a time

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concepts whose adapters are loaded, the one used last standing last."""
        return tuple(self._loaded)

    def add(self, concept: str, folder: Path) -> None:
        """Load the adapter of a concept, or put it in the place of the one that is loaded.

        Raises:
            IntegrityError, InvalidInput: it cannot be used; what was loaded stays.
        """
        with self._lock:
            if concept in self._loaded:
                self.backbone.replace_adapter(folder, concept)
            else:
                self.backbone.load_adapter(folder, concept)
            self._loaded[concept] = None
            self._loaded.move_to_end(concept)

    def draw(self, request: ImageRequest, *, adapter: str | None = None, original: bool = False) -> Drawn:
        """Draw one request.

        Of several concepts in a prompt the first one's adapter acts whole, of the others the embeddings.

        Args:
            adapter: the concept that acts whole, and that `[V]` means; default: the first that the prompt names.
            original: the base alone, which reads a placeholder word where a concept is named.

        Raises:
            InvalidInput: a concept that is not known, or one that the encoders would not see.
        """
        names = list(dict.fromkeys(mention.name for mention in mentions(request.prompt)))
        if mentions(request.negative_prompt):
            raise InvalidInput("concepts cannot be named in it", field="negative_prompt")
        if adapter is None and "" in names:
            raise InvalidInput("[V] is for datasets", field="prompt", mend="name the concept, e.g. <striped_star>")
        named = [name for name in names if name]
        with self._lock:
            began = time.monotonic()
            acting = adapter or next(iter(named), None)
            if not original:
                self._require([*named, *([acting] if acting else [])])
            steps = request.steps or self._sampling.steps
            guidance = self._sampling.guidance_scale if request.guidance is None else request.guidance
            image_CHW = self.backbone.sample(
                self.backbone.encode_text([request.prompt]),
                self.backbone.encode_text([request.negative_prompt]),
                seeds=[request.seed],
                steps=steps,
                guidance_scale=guidance,
                adapter=None if original else acting,
            )[0]
            png = to_png(image_CHW)
        return Drawn(
            png,
            {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "seed": request.seed,
                "steps": steps,
                "guidance": guidance,
                "concepts": [] if original else named,
                "height": image_CHW.shape[1],
                "width": image_CHW.shape[2],
                "base": self.backbone.fingerprint,
                "device": str(self.backbone.device),
                "sha256": hashlib.sha256(png).hexdigest(),
                "seconds": round(time.monotonic() - began, 3),
            },
        )

    def _require(self, concepts: list[str]) -> None:
        for concept in concepts:
            if concept in self._loaded:
                self._loaded.move_to_end(concept)
            elif self._find is None:
                known = ", ".join(f"<{name}>" for name in self._loaded) or "none"
                raise InvalidInput(f"<{concept}> is not known", field="prompt", mend=f"known concepts: {known}")
            else:
                with self._find(concept) as folder:
                    self.add(concept, folder)
        for concept in list(self._loaded)[: max(0, len(self._loaded) - self._keep)]:
            if concept not in concepts:
                self.backbone.remove_adapter(concept)
                del self._loaded[concept]
