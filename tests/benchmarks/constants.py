"""Measure what docs/scaling/constants.yaml states about tracking, registry, plan and orchestration; a few minutes.

    python tests/benchmarks/constants.py --out docs/scaling/constants.yaml

Replaces the constants that are measured here and leaves those of other sources as they are. Times are processor time,
of this process or of the server's: a busy machine does not change them much, waiting for a disk is not in them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import yaml  # noqa: E402
from mlflow_server import running_mlflow_server  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

import components.quiet  # noqa: E402, F401  (before every dependency)
from components.files import atomic_folder, write_text  # noqa: E402
from components.settings import load_profile  # noqa: E402
from components.tracking import registry, runs  # noqa: E402
from components.tracking.store import Store, open_store  # noqa: E402

STEPS, METRICS = 400, 14  # of each stage, as in profiles/sd35-medium.yaml


def seconds(run: Callable[[], object]) -> float:
    """Processor time of this process, which its neighbours do not lengthen: the demand of the utilisation law."""
    start = time.process_time()
    run()
    return time.process_time() - start


def spent_by(pid: int) -> float:
    """Processor time of a process and all below it, so far."""
    members = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(times.user + times.system for times in (member.cpu_times() for member in members))


def track(store: Store, folder: Path, concept: str, content: int) -> None:
    """What a customize writes: four runs, two stages' curves, parameters, a dataset, a registered version."""
    profile = load_profile(str(REPOSITORY / "profiles" / "sd35-medium.yaml"))
    adapter = folder / f"adapter-{concept}-{content}"
    with atomic_folder(adapter) as partial:
        save_file({"w": np.full(7, content)}, partial / "adapter_model.safetensors")
        (partial / "provenance.json").write_text("{}")
    with runs.run(store, concept, "customize") as parent:
        runs.log_parameters(store, parent.run_id, profile.model_dump(mode="json"))
        runs.log_dataset(store, parent.run_id, concept, f"data/concepts/{concept}", "0.dir", "data.dvc")
        for stage in ("extractor", "pure-learning"):
            with runs.run(store, concept, stage, parent=parent.run_id) as tracker:
                for step in range(STEPS):
                    tracker.log_metrics({f"metric/{number}": float(step) for number in range(METRICS)}, step)
        with runs.run(store, concept, "evaluation", parent=parent.run_id) as tracker:
            runs.log_final(store, tracker.run_id, {f"metric/{number}": 0.5 for number in range(20)})
        registry.register(store, concept, adapter, run_id=parent.run_id, base={}, tags={"run": parent.run_id})


def tracking(store: Store, folder: Path, rounds: int) -> float:
    """Seconds of all tracking of one concept; the first, which warms up, does not count."""
    track(store, folder, "warm", 0)
    return statistics.median(seconds(lambda n=n: track(store, folder, f"c{n}", n)) for n in range(rounds))


def search(store: Store, sizes: list[int]) -> dict[int, float]:
    """Versions of a model -> seconds to read them all, which every plan does for every concept."""
    client, found = store.client, {}
    name = registry.model_name("many")
    client.create_registered_model(name)
    made = 0
    for size in sorted(sizes):
        for number in range(made, size):
            client.create_model_version(
                name, f"file:///nowhere/{number}", tags={"adapter/digest": str(number), "key": "k"}
            )
        made = size
        registry.versions(store, "many")
        found[size] = statistics.median(seconds(lambda: registry.versions(store, "many")) for _ in range(5))
    return found


def upload_rate(store: Store, folder: Path, pid: int, megabytes: int = 64) -> float:
    """Bytes that the server's proxy takes in a second of its processor time."""
    file = folder / "artifact.bin"
    file.write_bytes(np.random.default_rng(0).bytes(megabytes * 10**6))
    with runs.run(store, "upload", "upload") as tracker:
        before = spent_by(pid)
        store.client.log_artifact(tracker.run_id, str(file), "a")
        return megabytes * 10**6 / (spent_by(pid) - before)


def plan(folder: Path) -> float:
    """Seconds that a plan spends on each concept, from projects of two sizes."""
    import small_project

    from components.world.family import create_untrained

    create_untrained(folder / "family", size="micro", seed=0)
    spent = {}
    for count in (2, 12):
        project = folder / f"project-{count}"
        project.mkdir()
        small_project.build(project, folder / "family", {f"star_{number}": "star" for number in range(count)})
        environment = {**os.environ, "PURECC_HOME": str(project), "PYTHONPATH": str(REPOSITORY)}
        program = (
            "import time; from flows.plan import make_plan; make_plan('micro'); start = time.process_time(); "
            "[make_plan('micro') for _ in range(5)]; print((time.process_time() - start) / 5)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=project, capture_output=True, text=True, check=True
        )
        spent[count] = float(done.stdout.split()[-1])
    return max(0.0, (spent[12] - spent[2]) / 10)


Constant = tuple[float, str, str]


def measure(folder: Path, rounds: int, sizes: list[int]) -> Iterator[tuple[str, Constant]]:
    """Name -> value, unit, how it was measured; one after another, so that what is known is not lost."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    (folder / "embedded").mkdir()
    store = open_store(folder / "embedded")
    how = f"four runs, 2 x {STEPS} steps of {METRICS} metrics, a registered version"
    yield "tracking_embedded", (tracking(store, folder, rounds), "s per concept", f"{how}; SQLite, one writer")
    times = search(store, sizes)
    small, large = min(sizes), max(sizes)
    slope = max(0.0, (times[large] - times[small]) / (large - small))
    yield "registry_search", (times[small], "s", f"all versions of a model that has {small}")
    yield "registry_search_per_version", (slope, "s per version", f"the same with {large}")
    yield "plan", (plan(folder), "s per concept", "slope of two projects, 2 and 12 concepts that have no version yet")
    with running_mlflow_server(folder / "server") as server:
        os.environ["MLFLOW_TRACKING_URI"] = server.address
        (folder / "client").mkdir()
        over_http = open_store(folder / "client")
        track(over_http, folder, "warm", 0)
        before = spent_by(server.pid)
        for number in range(rounds):
            track(over_http, folder, f"http-{number}", number)
        demand = (spent_by(server.pid) - before) / rounds
        yield "tracking_http_server", (demand, "s per concept", f"{how}; of a server of one process on SQLite")
        sent = "64 MB through the server's proxy to a disk"
        yield "artifact_rate", (upload_rate(over_http, folder, server.pid), "bytes/s", sent)
        del os.environ["MLFLOW_TRACKING_URI"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--versions", type=lambda text: [int(part) for part in text.split(",")], default=[10, 300])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="purecc-constants-") as temporary:
        on = f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d', time.gmtime())}"
        for name, (value, unit, how) in measure(Path(temporary), options.rounds, options.versions):
            content: dict[str, Any] = (yaml.safe_load(options.out.read_text()) or {}) if options.out.exists() else {}
            content[name] = {"value": float(f"{value:.3g}"), "unit": unit, "source": "measured", "how": how, "on": on}
            write_text(options.out, yaml.safe_dump(content, sort_keys=False, width=120))
            print(f"{name}: {value:.3g} {unit}", file=sys.stderr)


if __name__ == "__main__":
    main()
