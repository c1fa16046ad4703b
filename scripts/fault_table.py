"""The fault table: what can go wrong with a promotion, done for real, and where each ends.

    python scripts/fault_table.py [--out docs/faults.md] [--only embedded|servers]

Everything runs in a temporary project on an untrained model family, in some minutes. Processes are killed with SIGKILL.
The second part starts the servers of infra/compose.yaml as processes, which needs PostgreSQL and Redis (apt-get install
postgresql redis-server) and the packages of `purecc[dev]`.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import components.quiet  # noqa: F401  (before every dependency)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import racing
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from components.backbones.sd3 import SD3Backbone
from components.errors import PureCCError
from components.files import atomic_folder, write_manifest
from components.serving.recording import write_recording
from components.serving.requests import ImageRequest
from components.serving.service import ImageService
from components.settings import BaseSettings, LoraSettings, PromotionSettings, SamplingSettings
from components.tracking import promotion, registry, servability, succession
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
    own = open_store(store.root)
    racing.die_at(own, number)
    try:
        promotion.promote(own, CONCEPT, 3, reason=UNCOMPARED) if kind == "promote" else promotion.rollback(
            own, CONCEPT, "tried"
        )
    finally:
        os._exit(0)


def shuffled(count: int) -> list[int]:
    """Scores 1 to `count` in an order of their own."""
    scores = list(range(1, count + 1))
    random.Random(count).shuffle(scores)
    return scores


def ended(fault: str, store: Store, scores: dict[int, int], failures: list[str]) -> Row:
    """The row of a race: one champion, the best that passed; every promotion counted once, nothing half-done."""
    found = racing.outcome(store, CONCEPT, scores)
    said = "; ".join([*found.problems, *failures]) or f"the best of {len(scores)}, after {found.moves} moves; none lost"
    right = not found.problems and not failures
    return Row(fault, right, f"version {found.champion}, score {scores.get(found.champion or 0)}", said)


def races(bench: Bench) -> list[Row]:
    """Promoters at once in one project, as threads and as processes; the file lock holds them apart."""
    rows = []
    for kind in ("threads", "processes"):
        for count in RACERS:
            store = open_store(bench.root / f"race-{kind}-{count}")
            scores = shuffled(count)
            numbers = [register(store, bench.adapters[i + 1], float(score)) for i, score in enumerate(scores)]

            def act(number: int, root: Path = store.root) -> None:
                own = open_store(root)
                promotion.promote_best(own, CONCEPT, number, racing.judged(own, CONCEPT, number))

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
            failures = [f"{failed} promoters failed"] if failed else []
            scored = dict(zip(numbers, scores, strict=True))
            rows.append(ended(f"{count} racing {kind}, embedded", store, scored, failures))
    return rows


def server_races(bench: Bench) -> list[Row]:
    """The same on the servers of infra/compose.yaml, each promoter on a host of its own; and one that is killed.

    MLflow and Prefect run over HTTP with passwords, on PostgreSQL, Redis and S3. Only the concurrency limit of the
    Prefect server holds the promoters apart.
    """
    sys.path.insert(0, str(racing.REPOSITORY / "tests"))
    from servers import compose

    folder = bench.root / "servers"
    with compose.running(folder / "stack", "mlflow-user", "prefect-services", "mlflow") as stack:
        stack.complete("mlflow-user")
        clients = {**stack.client_environment(), "PREFECT_HOME": str(folder / "prefect")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        before = dict(os.environ)
        os.environ.update({name: value for name, value in clients.items() if name.startswith("MLFLOW_")})
        try:
            (folder / "project").mkdir()
            store = open_store(folder / "project")
            return [*_server_races(bench, store, folder, {**kept, **clients})]
        finally:
            os.environ.clear()
            os.environ.update(before)


def _server_races(bench: Bench, store: Store, folder: Path, environment: dict[str, str]) -> Iterator[Row]:
    numbers = [register(store, bench.adapters[number], float(number)) for number in range(1, max(RACERS) + 1)]

    def prepared(count: int) -> dict[int, int]:
        scores = dict(zip(numbers, shuffled(count)))
        racing.start_over(store, CONCEPT, scores)
        return scores

    for kind in ("threads", "processes"):
        for count in RACERS:
            scores = prepared(count)
            groups = [list(scores)] if kind == "threads" else [[number] for number in scores]
            codes = racing.race(CONCEPT, folder / f"{kind}-{count}", groups, environment)
            failures = [f"a promoter ended with {code}" for code in codes if code != 0]
            yield ended(f"{count} racing {kind}, servers", store, scores, failures)
    scores = prepared(2)
    best = max(scores, key=lambda number: scores[number])
    (first,) = set(scores) - {best}
    before_alias = "--die-before=set_registered_model_alias"
    (code,) = racing.race(CONCEPT, folder / "killed", [[first]], environment, before_alias)
    pending = succession.pending(store, CONCEPT)
    (after,) = racing.race(CONCEPT, folder / "next", [[best]], environment)
    failures = [] if code == -signal.SIGKILL else [f"it was not killed: it ended with {code}"]
    failures += [] if pending is not None else ["it was killed where nothing was half-done"]
    failures += [] if after == 0 else [f"the next one ended with {after}"]
    found = ended("killed with the servers' lock in its hand", store, scores, failures)
    yield replace(found, message=f"{found.message}; the lock's lease ran out, the half-done move was completed first")


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
    servability.bless(store, CONCEPT, number, PromotionSettings())
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


def embedded(bench: Bench) -> list[Row]:
    """Every fault in the embedded store."""
    return [
        *kills(bench),
        *races(bench),
        partial_upload(bench),
        sound(bench),
        spoilt(bench, "truncated safetensors", truncate),
        spoilt(bench, "header that states a terabyte", long_header),
        spoilt(bench, "pickle renamed to .safetensors", pickled),
        spoilt(bench, "NaN weights", not_a_number),
        spoilt(bench, "adapter without effect", no_effect, original=True),
        wrong_base(bench),
        *bytes_deleted(bench),
        *alias_deleted(bench),
        *foreign_report(bench),
        clock_goes_back(bench),
    ]


HEAD = """\
Written by `python scripts/fault_table.py --out docs/faults.md`; with `--only` the rows of the other part stay as they
were. Before every fault version 1 is `previous`, 2 the champion, and 3 has passed its gates.
Races begin without a champion; versions get the scores 1 to N in a shuffled order, and the gate lets
none pass that is worse than the champion. In rows that end in `servers` MLflow and Prefect run over
HTTP, with passwords, on PostgreSQL, Redis and S3 (the processes of `infra/compose.yaml`), and every
promoter has a project folder of its own, as on a host of its own. Such a race is also checked for
moves that were counted twice, for a champion replaced by a worse one, and for what is half-done.
The adapters of the rows from `none` to `wrong base` take the whole way: registered with a picture of
their own, judged, loaded and drawn with by a fresh process as by a consumer, offered for promotion.
"""
PARTS = {"embedded": embedded, "servers": server_races}


def table(rows: list[Row], hide: str) -> str:
    """The rows as a Markdown table."""
    lines = ["| fault | ends in | right | message |", "|---|---|---|---|"]
    for each in rows:
        message = " ".join(re.sub(rf"{re.escape(hide)}|/[^ ]*/purecc-\w+", "...", each.message).split())
        message = re.sub(r"\.\.\./project-\d+/\S*?/artifacts/(?=adapter)", ".../", message).replace("|", "/")
        shown = message if len(message) <= 220 else f"{message[:217]}..."
        lines.append(f"| {each.fault} | {each.champion} | {'yes' if each.right else '**NO**'} | {shown} |")
    return "\n".join(lines) + "\n"


def of_others(file: Path, part: str | None) -> tuple[str, str]:
    """The lines of the table in `file` that the other part wrote: those to stand before this one's, and after."""
    if part is None or not file.is_file():
        return "", ""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!fault )", line)]
    kept = "".join(f"{line}\n" for line in lines if ("servers" in line.split("|")[1]) != (part == "servers"))
    return (kept, "") if part == "servers" else ("", kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table into this Markdown file")
    parser.add_argument("--only", choices=tuple(PARTS), help="of the two parts; default: both; --out keeps the other")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are not left behind
    with tempfile.TemporaryDirectory(prefix="purecc-faults-") as folder:
        bench, rows = Bench(Path(folder)), []
        for part in PARTS:
            if arguments.only in (None, part):
                rows += PARTS[part](bench)
        text = table(rows, folder)
    print(json.dumps([each.__dict__ for each in rows], indent=2) if arguments.json else text)
    if arguments.out:
        head = f"# What can go wrong with a promotion\n\n{HEAD}\n"
        titles, before, after = "".join(text.splitlines(keepends=True)[:2]), *of_others(arguments.out, arguments.only)
        rest = "".join(text.splitlines(keepends=True)[2:])
        arguments.out.write_text(head + titles + before + rest + after, encoding="utf-8")
    return 0 if all(each.right for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
