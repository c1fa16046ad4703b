"""What every row of the fault table begins with: a project with three versions, and how a row is judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import racing
import torch

from components.backbones.sd3 import SD3Backbone
from components.errors import PureCCError
from components.files import atomic_folder
from components.serving.recording import write_recording
from components.serving.requests import ImageRequest
from components.serving.service import ImageService
from components.settings import BaseSettings, LoraSettings, SamplingSettings
from components.tracking import promotion, registry
from components.tracking.store import Store, open_store

CONCEPT = "star"
RACERS = (2, 4, 8)
SAMPLING = SamplingSettings(steps=2, guidance_scale=4.0)
UNCOMPARED = "the table's versions are judged by the bound alone"


@dataclass(frozen=True)
class Row:
    """One fault: whether it ended well, and what was said."""

    fault: str
    right: bool
    champion: str
    message: str


class Bench:
    """A temporary project whose registry is copied afresh for every fault."""

    def __init__(self, root: Path):
        from components.world.family import create_untrained

        self.root = root
        for name, seed in (("base", 0), ("other", 1)):
            create_untrained(root / name, size="micro", seed=seed)
        self.backbone, self.other = (self._load(root / name) for name in ("base", "other"))
        self._pictures = ImageService(self.backbone, SAMPLING)
        self.adapters = {number: self._adapter(number) for number in range(1, 9)}
        self._template = root / "template"
        store = open_store(self._template)
        for number in (1, 2, 3):
            register(store, self.adapters[number], float(number))
        for number in (1, 2):
            promotion.promote(store, CONCEPT, number, reason=UNCOMPARED)
        store.client.get_registered_model("purecc-star")
        self._count = 0

    def _settings(self, folder: Path) -> BaseSettings:
        return BaseSettings(path=str(folder), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks")

    def _load(self, folder: Path) -> SD3Backbone:
        return SD3Backbone.load(self._settings(folder))

    def reference(self, backbone: SD3Backbone) -> dict[str, Any]:
        """What a registered model says of its base."""
        folder = self.root / ("base" if backbone is self.backbone else "other")
        settings, sampling = (each.model_dump(mode="json") for each in (self._settings(folder), SAMPLING))
        return {"settings": settings, "fingerprint": backbone.fingerprint, "sampling": sampling}

    def recording(self, *, original: bool) -> Path:
        """A picture to travel with a model: adapter 4's, or the base's of the same prompt."""
        folder = self.root / f"recording-{original}"
        if not folder.is_dir():
            if CONCEPT not in self._pictures.concepts:
                self._pictures.add(CONCEPT, self.adapters[4])
            request = ImageRequest(prompt=f"a <{CONCEPT}> star on the left", seed=3)
            image = self.root / "image.png"
            image.write_bytes(self._pictures.draw(request, original=original, adapter=CONCEPT).png)
            write_recording(folder, request, image)
        return folder

    def _adapter(self, seed: int) -> Path:
        random_numbers = torch.Generator().manual_seed(seed)
        values = torch.randn(self.backbone.adapted.embedding_shape, generator=random_numbers)
        lora = LoraSettings(rank=2, alpha=2.0)
        self.backbone.create_adapter("made", concept=CONCEPT, lora=lora, embeddings_NRD=values, seed=seed)
        for key, value in self.backbone.parameters("made")["lora"].items():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.1, generator=random_numbers)
        folder = self.root / "adapters" / str(seed)
        with atomic_folder(folder) as partial:
            self.backbone.save_adapter("made", partial)
        self.backbone.remove_adapter("made")
        return folder

    def store(self) -> Store:
        """Versions 1 (previous), 2 (champion), 3 (challenger, passed)."""
        self._count += 1
        root = self.root / f"project-{self._count}"
        shutil.copytree(self._template, root)
        return open_store(root)


def register(store: Store, adapter: Path, score: float) -> int:
    return racing.register(store, CONCEPT, adapter, score)


def champion(store: Store) -> int | None:
    return registry.aliases(store, CONCEPT).get("champion")


def row(fault: str, store: Store, expected: int | None, message: str, *, right: bool = True) -> Row:
    found = champion(store)
    return Row(fault, right and found == expected and bool(message), f"version {found}", message)


def stored_weights(store: Store, number: int) -> Path:
    digest = registry.version(store, CONCEPT, number).tags["adapter/digest"]
    for file in (store.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors"):
        if registry.content_digest(file.parent) == digest:
            return file
    raise LookupError(number)


def refused(fault: str, store: Store, act: Callable[[], Any], expected: int | None = 2) -> Row:
    """The act has to be refused with an error of ours."""
    try:
        act()
    except PureCCError as error:
        return row(fault, store, expected, str(error))
    return row(fault, store, expected, "was not refused", right=False)
