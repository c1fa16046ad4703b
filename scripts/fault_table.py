"""The fault table: what can go wrong with a promotion, done for real, and where each ends.

    python scripts/fault_table.py [--out docs/faults.md]

Everything runs in a temporary project on an untrained model family, in some minutes. Processes are killed with SIGKILL.
Exit code 1 if one row does not end in the right champion with a clear message.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import components.quiet  # noqa: F401  (before every dependency)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from components.backbones.sd3 import SD3Backbone
from components.errors import PureCCError
from components.files import atomic_folder, write_manifest
from components.settings import BaseSettings, Gate, LoraSettings
from components.tracking import promotion, registry, runs, succession
from components.tracking.gates import GateReport, judge
from components.tracking.store import Store, open_store

CONCEPT = "star"
GATES = {"quality": Gate(minimum=0.0, not_worse_by=0.0)}
WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "create_model_version",
)


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
        self.adapters = {number: self._adapter(number) for number in range(1, 9)}
        self._template = root / "template"
        store = open_store(self._template)
        for number in (1, 2, 3):
            register(store, self.adapters[number], float(number))
        for number in (1, 2):
            promotion.promote(store, CONCEPT, number)
        store.client.get_registered_model("purecc-star")
        self._count = 0

    def _load(self, folder: Path) -> SD3Backbone:
        settings = BaseSettings(
            path=str(folder), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks"
        )
        return SD3Backbone.load(settings)

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
    """Register and judge by the bound alone."""
    with runs.run(store, CONCEPT, "customize") as tracker:
        number = registry.register(
            store, CONCEPT, adapter, run_id=tracker.run_id, base={}, tags={"score": str(score)}
        ).number
    judged(store, number)(None)
    return number


def judged(store: Store, number: int) -> Callable[[Any], GateReport]:
    """A judge of a version against a champion, by the score that its tag states."""

    def against(champion: Any) -> GateReport:
        score = float(registry.version(store, CONCEPT, number).tags["score"])
        reference = {"quality": float(champion.tags["score"])} if champion else None
        report = judge({"quality": score}, GATES, reference)
        promotion.record_judgement(store, CONCEPT, number, report, key="k", against=None)
        return report

    return against


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


# the faults


def kills(bench: Bench) -> list[Row]:
    """A process is killed before each of its writes to the registry; then the next start reconciles."""
    rows = []
    for kind in ("promote", "rollback"):
        for number in range(40):
            store = bench.store()
            child = os.fork()
            if child == 0:
                die_at(store, kind, number)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                break
            after = open_store(store.root)
            repair = succession.reconcile(after, CONCEPT)
            expected = {"promote": 3, "rollback": 1}[kind] if repair else 2
            message = repair.detail if repair else "nothing was written down yet: the champion is the one before"
            rows.append(row(f"{kind} killed before its write {number + 1}", after, expected, message))
    return rows


def die_at(store: Store, kind: str, number: int) -> None:
    """In a forked process: act, and die before the write `number`."""
    own, done = open_store(store.root), 0
    for name in WRITES:
        real = getattr(own.client, name)

        def write(*arguments: Any, real: Any = real, **more: Any) -> Any:
            nonlocal done
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return real(*arguments, **more)

        setattr(own.client, name, write)
    try:
        promotion.promote(own, CONCEPT, 3) if kind == "promote" else promotion.rollback(own, CONCEPT, "tried")
    finally:
        os._exit(0)


def races(bench: Bench) -> list[Row]:
    """Promoters at once, as threads and as processes: the best that passed is the champion, none is lost."""
    rows = []
    for kind in ("threads", "processes"):
        for count in (2, 4, 8):
            store = open_store(bench.root / f"race-{kind}-{count}")
            scores = list(range(1, count + 1))
            random.Random(count).shuffle(scores)
            numbers = [register(store, bench.adapters[i + 1], float(score)) for i, score in enumerate(scores)]

            def act(number: int, root: Path = store.root) -> None:
                own = open_store(root)
                promotion.promote_best(own, CONCEPT, number, judged(own, number))

            if kind == "threads":
                threads = [threading.Thread(target=act, args=(number,)) for number in numbers]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                failed = 0
            else:
                children = []
                for number in numbers:
                    child = os.fork()
                    if child == 0:
                        code = 1
                        try:
                            act(number)
                            code = 0
                        finally:
                            os._exit(code)
                    children.append(child)
                failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
            best = numbers[scores.index(count)]
            lost = [number for number in numbers if registry.version(store, CONCEPT, number).status == "not judged"]
            message = f"{count} judged, {failed} failed, {len(lost)} lost; the best has score {count}"
            rows.append(row(f"{count} racing {kind}", store, best, message, right=not failed and not lost))
    return rows


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


def spoilt(bench: Bench, fault: str, spoil: Callable[[Path], None]) -> Row:
    """An adapter folder is spoilt, with a new manifest: it must not become a version, or not load."""
    store = bench.store()
    folder = bench.root / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bench.adapters[4], folder)
    spoil(folder)
    write_manifest(folder)

    def act() -> None:
        number = register(store, folder, 9.0)
        with registry.adapter_folder(store, CONCEPT, number) as fetched:  # what the fresh process does, too
            bench.backbone.load_adapter(fetched, "spoilt")
        promotion.promote(store, CONCEPT, number)

    return refused(fault, store, act)


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
    store = bench.store()
    return refused("wrong base", store, lambda: bench.other.load_adapter(bench.adapters[2], "wrong"))


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
        promotion.promote(store, CONCEPT, 3)
        promotion.rollback(store, CONCEPT, "the clock went back")
        promotion.promote(store, CONCEPT, 3)
    finally:
        time.time = real
    state = succession.state(store, CONCEPT)
    message = f"move {state.sequence}, counted and not timed; previous is {state.previous}" if state else ""
    return row("clock goes back ten years", store, 3, message, right=bool(state and state.previous == 2))


def everything(bench: Bench) -> list[Row]:
    """Every fault."""
    return [
        *kills(bench),
        *races(bench),
        partial_upload(bench),
        spoilt(bench, "truncated safetensors", truncate),
        spoilt(bench, "header that states a terabyte", long_header),
        spoilt(bench, "pickle renamed to .safetensors", pickled),
        spoilt(bench, "NaN weights", not_a_number),
        spoilt(bench, "adapter without effect", no_effect),
        wrong_base(bench),
        *bytes_deleted(bench),
        *alias_deleted(bench),
        *foreign_report(bench),
        clock_goes_back(bench),
    ]


def table(rows: list[Row], hide: str) -> str:
    """The rows as a Markdown table."""
    lines = ["| fault | ends in | right | message |", "|---|---|---|---|"]
    for each in rows:
        message = " ".join(re.sub(rf"{re.escape(hide)}|/[^ ]*/purecc-\w+", "...", each.message).split())
        message = message.replace("|", "/")
        shown = message if len(message) <= 220 else f"{message[:217]}..."
        lines.append(f"| {each.fault} | {each.champion} | {'yes' if each.right else '**NO**'} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="purecc-faults-") as folder:
        rows = everything(Bench(Path(folder)))
        text = table(rows, folder)
    print(json.dumps([each.__dict__ for each in rows], indent=2) if arguments.json else text)
    if arguments.out:
        head = (
            "# What can go wrong with a promotion\n\nWritten by `python scripts/fault_table.py --out docs/faults.md`.\n"
        )
        head += "Before every fault version 1 is `previous`, 2 the champion, and 3 has passed its gates.\n\n"
        arguments.out.write_text(head + text, encoding="utf-8")
    return 0 if all(each.right for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
