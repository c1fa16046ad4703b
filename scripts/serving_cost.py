"""One server for many concepts against one process for each: memory, start, and the time of a picture.

    python scripts/serving_cost.py [--concepts 3] [--rounds 5] [--out docs/consumers/serving.json]
    python scripts/serving_cost.py --miniature          an untrained model, everything once: does it run?

`examples/concept_server.py` is started on a temporary project whose registry has a champion for each concept (random
adapters: what is measured does not depend on what they know). Once as one server that is asked for the concepts in
turn, so that every picture is of another concept than the one before; and then as one server for each concept. Times
are medians, `seconds` as a client sees them, `processor` of the server's processor time, which says less of what else
the machine does. Memory is the proportional set size: what processes share counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import components.quiet  # noqa: F401  (before every dependency)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import psutil
import torch
import yaml

from components.backbones.sd3 import SD3Backbone
from components.files import atomic_folder
from components.settings import Profile, load_profile, project_root
from components.tracking import promotion, registry, runs
from components.tracking.gates import judge
from components.tracking.store import open_store

NAMES = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath")
_START_SECONDS = 500.0


def make_project(root: Path, profile: Profile, concepts: tuple[str, ...]) -> None:
    """A project with that profile, and a random champion for each concept."""
    (root / "profiles").mkdir(parents=True)
    (root / "profiles" / f"{profile.name}.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    backbone, store = SD3Backbone.load(profile.base), open_store(root)
    for seed, name in enumerate(concepts):
        random = torch.Generator().manual_seed(seed)
        values = torch.randn(backbone.adapted.embedding_shape, generator=random)
        backbone.create_adapter(name, concept=name, lora=profile.learning.lora, embeddings_NRD=values, seed=seed)
        for key, value in backbone.parameters(name)["lora"].items():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.02, generator=random)
        with atomic_folder(root / "adapters" / name) as partial:
            backbone.save_adapter(name, partial)
        backbone.remove_adapter(name)
        with runs.run(store, name, "customize") as tracker:
            adapter = root / "adapters" / name
            number = registry.register(store, name, adapter, run_id=tracker.run_id, base={}, tags={}).number
        promotion.record_judgement(store, name, number, judge({}, {}), key="k", against=None)
        promotion.promote(store, name, number)


@dataclass
class Server:
    """A running server of the example."""

    port: int
    process: psutil.Process
    started: float
    taken: list[tuple[float, float]] = field(default_factory=list)

    def call(self, path: str, body: Any = None) -> tuple[float, float]:
        """Seconds of a request, as the client sees them and of the server's processor."""
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method="POST")
        before, began = self.process.cpu_times(), time.monotonic()
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
        seconds, after = time.monotonic() - began, self.process.cpu_times()
        return seconds, after.user + after.system - before.user - before.system

    def draw(self, concept: str) -> tuple[float, float]:
        return self.call("/images", {"prompt": f"a <{concept}> star on the left"})

    @property
    def memory(self) -> float:
        """Proportional set size in MiB."""
        return float(self.process.memory_full_info().pss / 2**20)


@contextlib.contextmanager
def serving(root: Path, profile: str) -> Iterator[Server]:
    """The example server as a process of its own, ready to answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "examples" / "concept_server.py")]
    environment = {**os.environ, "PURECC_HOME": str(root), "PURECC_PROFILE": profile, "PYTHONPATH": str(REPOSITORY)}
    began = time.monotonic()
    log = root / f"{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=root,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        while True:
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield Server(port, psutil.Process(process.pid), time.monotonic() - began)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def summary(taken: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of a list of (wall, processor) seconds."""
    wall, processor = zip(*taken, strict=True)
    return {"seconds": round(statistics.median(wall), 3), "processor": round(statistics.median(processor), 3)}


def together(root: Path, profile: str, concepts: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """One server, asked for all concepts in turn."""
    with serving(root, profile) as server:
        empty = server.memory
        first = [server.draw(concept) for concept in concepts]
        full = server.memory
        turn = [server.draw(concept) for _ in range(rounds) for concept in concepts]
        same = [server.draw(concepts[0]) for _ in range(rounds * len(concepts))]
        swap = [server.call(f"/concepts/{concept}") for concept in concepts]
        return {
            "start": round(server.started, 1),
            "memory_mib": {"base": round(empty), "all_concepts": round(full)},
            "first_picture_of_a_concept": summary(first),
            "picture_of_another_concept_than_before": summary(turn),
            "picture_of_the_same_concept": summary(same),
            "next_champion_in_place": summary(swap),
        }


def apart(root: Path, profile: str, concepts: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """One server for each concept, all of them in memory."""
    with contextlib.ExitStack() as stack:
        servers = {concept: stack.enter_context(serving(root, profile)) for concept in concepts}
        first = [server.draw(concept) for concept, server in servers.items()]
        turn = [server.draw(concept) for _ in range(rounds) for concept, server in servers.items()]
        return {
            "start": round(sum(server.started for server in servers.values()), 1),
            "memory_mib": {"all_concepts": round(sum(server.memory for server in servers.values()))},
            "first_picture_of_a_concept": summary(first),
            "picture_of_another_concept_than_before": summary(turn),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--concepts", type=int, default=3, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    concepts, rounds = NAMES[: arguments.concepts], 1 if arguments.miniature else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="purecc-serving-") as temporary:
        folder = Path(temporary)
        profile = load_profile(arguments.profile, ["evaluation.sampling.steps=1"] if arguments.miniature else [])
        base = (project_root() / profile.base.path).resolve()
        if arguments.miniature:
            from components.world.family import create_untrained

            base = folder / "base"
            create_untrained(base, size="micro", seed=0)
        profile = profile.model_copy(update={"base": profile.base.model_copy(update={"path": str(base)})})
        make_project(folder / "project", profile, concepts)
        load = os.getloadavg()[0]
        found = {
            "concepts": len(concepts),
            "steps": profile.evaluation.sampling.steps,
            "one_server": together(folder / "project", profile.name, concepts, rounds),
            "one_process_each": apart(folder / "project", profile.name, concepts, rounds),
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "load_before": round(load, 1)},
        }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
