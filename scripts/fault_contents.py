"""Rows of the fault table: adapters, bytes, aliases, reports and clocks that are not as they should be."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import racing
import torch
from fault_bench import (
    CONCEPT,
    UNCOMPARED,
    Bench,
    Row,
    refused,
    register,
    row,
    stored_weights,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from components.backbones.sd3 import SD3Backbone
from components.files import write_manifest
from components.settings import PromotionSettings
from components.tracking import promotion, registry, servability, succession
from components.tracking.store import Store


def partial_upload(bench: Bench) -> Row:
    store = bench.store()
    real = registry._log_model

    def cut(*arguments: Any, **more: Any) -> str:
        logged = real(*arguments, **more)
        location = Path(store.client.get_logged_model(logged).artifact_location)
        weights = next(location.rglob("adapter_model.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-100])
        return logged

    registry._log_model = cut
    try:
        return refused("partial upload", store, lambda: register(store, bench.adapters[4], 9.0))
    finally:
        registry._log_model = real


def offer(bench: Bench, store: Store, adapter: Path, backbone: SD3Backbone, *, original: bool = False) -> None:
    """The whole way of an adapter to the champion's alias: registered, judged, served by a fresh process, promoted.

    Args:
        backbone: the base that the registered model refers to.
        original: the picture that it comes with is the base's.
    """
    recording = bench.recording(original=original)
    number = racing.register(store, CONCEPT, adapter, 9.0, bench.reference(backbone), recording)
    racing.judged(store, CONCEPT, number, ["servability"])(registry.by_alias(store, CONCEPT))
    servability.bless(store, CONCEPT, number, PromotionSettings(), servability.FreshProcess())
    promotion.promote(store, CONCEPT, number)


def sound(bench: Bench) -> Row:
    """Adapter 4 as it is: that the faults after it are refused is not for want of something else."""
    store = bench.store()
    offer(bench, store, bench.adapters[4], bench.backbone)
    facts = json.loads(registry.version(store, CONCEPT, 4).tags["servability/facts"])
    return row("none, by the way of the following ones", store, 4, facts["reason"])


def spoilt(bench: Bench, fault: str, spoil: Callable[[Path], None], *, original: bool = False) -> Row:
    """An adapter folder is spoilt, with a new manifest: it must not become a version, or not the champion."""
    store = bench.store()
    folder = bench.root / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bench.adapters[4], folder)
    spoil(folder)
    write_manifest(folder)
    return refused(fault, store, lambda: offer(bench, store, folder, bench.backbone, original=original))


def rewrite(file: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    save_file({name: change(name, value) for name, value in load_file(file).items()}, file, metadata=metadata)


def truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"w": [1.0]}))


def not_a_number(folder: Path) -> None:
    rewrite(folder / "adapter_model.safetensors", lambda name, value: value * float("nan"))


def no_effect(folder: Path) -> None:
    rewrite(folder / "adapter_model.safetensors", lambda name, value: value * 0)
    file = folder / "concept_embeddings.safetensors"
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    save_file({}, file, metadata=metadata)


def long_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")


def wrong_base(bench: Bench) -> Row:
    """An adapter is registered with a base that it was not trained on."""
    store = bench.store()
    return refused("wrong base", store, lambda: offer(bench, store, bench.adapters[4], bench.other))


def bytes_deleted(bench: Bench) -> list[Row]:
    store = bench.store()
    stored_weights(store, 2).unlink()
    (check,) = promotion.verify(store, CONCEPT, 2)
    found = row("bytes of the champion deleted: verify", store, 2, check.detail, right=not check.ok)
    repair = succession.reconcile(store, CONCEPT, replace_broken=True)
    detail = repair.detail if repair else ""
    candidate = bench.store()
    stored_weights(candidate, 3).unlink()
    return [
        found,
        row("bytes of the champion deleted: repair", store, 1, detail),
        refused("bytes of the candidate deleted", candidate, lambda: promotion.promote(candidate, CONCEPT, 3)),
    ]


def alias_deleted(bench: Bench) -> list[Row]:
    store = bench.store()
    store.client.delete_registered_model_alias("purecc-star", "champion")
    repair = succession.reconcile(store, CONCEPT)
    first = row("alias champion deleted", store, 2, repair.detail if repair else "")
    store = bench.store()
    store.client.delete_model_version("purecc-star", "2")
    repair = succession.reconcile(store, CONCEPT)
    return [first, row("version of the champion deleted", store, 1, repair.detail if repair else "")]


def foreign_report(bench: Bench) -> list[Row]:
    store = bench.store()
    number = register(store, bench.adapters[4], -1.0)
    tags = registry.version(store, CONCEPT, 3).tags
    registry.set_tags(store, CONCEPT, number, {key: value for key, value in tags.items() if key.startswith("gate/")})
    first = refused("gate report of another version", store, lambda: promotion.promote(store, CONCEPT, number))
    store = bench.store()
    number = register(store, bench.adapters[4], -1.0)
    registry.set_tags(store, CONCEPT, number, {"gate/status": "passed"})
    return [first, refused("gate report altered", store, lambda: promotion.promote(store, CONCEPT, number))]


def clock_goes_back(bench: Bench) -> Row:
    store = bench.store()
    real = time.time
    time.time = lambda: real() - 10 * 365 * 86400
    try:
        promotion.promote(store, CONCEPT, 3, reason=UNCOMPARED)
        promotion.rollback(store, CONCEPT, "the clock went back")
        promotion.promote(store, CONCEPT, 3, reason=UNCOMPARED)
    finally:
        time.time = real
    state = succession.state(store, CONCEPT)
    message = f"move {state.sequence}, counted and not timed; previous is {state.previous}" if state else ""
    return row("clock goes back ten years", store, 3, message, right=bool(state and state.previous == 2))
