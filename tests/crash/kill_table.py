"""Kill `purecc continual` at random moments, run it again plainly, and compare with a run that nothing disturbed.

    python tests/crash/kill_table.py --kills 30 --concepts 4 --seed 0

Each row is one kill -9 in a fresh copy of a small project (untrained micro models). Half of the moments are drawn from
the length of an undisturbed run, the other half from its critical places: in the middle of a checkpoint, of a stage's
publication, of an upload, of a registration or promotion. After one plain run again a row has to show the undisturbed
run's champions with bit-identical adapters, no process left, no version lost or doubled, and no partial file under a
final name. Exit code 1 if a row does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
CONCEPTS = {"spotted_star": "star", "ball": "circle", "wash": "style", "second_star": "star"}
COMMAND = [sys.executable, "-m", "flows.cli", "continual", "--profile", "micro", "--json"]


def projects() -> Any:
    """The maker of small projects, from the integration tests."""
    file = REPOSITORY / "tests" / "integration" / "flows" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_projects", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    return {**kept, "PURECC_HOME": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def start(root: Path) -> subprocess.Popen[bytes]:
    log = (root.parent / f"{root.name}.log").open("ab")
    return subprocess.Popen(COMMAND, cwd=root, env=environment(root), stdout=log, stderr=log)


def copied(template: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target, symlinks=True)
    return target


# the moments


def _any(root: Path, *patterns: str) -> Callable[[], bool]:
    return lambda: any(next(root.glob(pattern), None) is not None for pattern in patterns)


def _row(root: Path, statement: str) -> Callable[[], bool]:
    database = root / "mlruns" / "mlflow.db"

    def happened() -> bool:
        if not database.is_file():
            return False
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.2) as connection:
                return connection.execute(statement).fetchone() is not None
        except sqlite3.Error:
            return False

    return happened


PLACES: dict[str, Callable[[Path], Callable[[], bool]]] = {
    "checkpoint": lambda root: _any(root, ".purecc/work/*/*/checkpoints/.*.partial"),
    "publication": lambda root: _any(root, ".purecc/artifacts/*/.*.partial"),
    "upload": lambda root: _any(root, "mlruns/artifacts/*/models/*"),
    "registration": lambda root: _row(root, "SELECT 1 FROM model_versions"),
    "judgement": lambda root: _row(root, "SELECT 1 FROM model_version_tags WHERE key = 'gate/status'"),
    "promotion": lambda root: _row(root, "SELECT 1 FROM registered_model_aliases WHERE alias = 'champion'"),
    "bundle": lambda root: _row(root, "SELECT 1 FROM model_versions WHERE name = 'purecc-bundle'"),
}


def moments(seconds: float, count: int, source: random.Random) -> Iterator[tuple[str, float]]:
    """(place, seconds): where a kill falls; a place is waited for, then a moment more."""
    places = list(PLACES)
    for number in range(count):
        if number % 2 == 0:
            yield "any", source.uniform(0.5, max(seconds, 1.0))
        else:
            yield places[number // 2 % len(places)], source.uniform(0.0, 0.1)


# the state


@dataclass(frozen=True)
class State:
    """What the registry of a project holds.

    Attributes:
        champions: concept -> (version, digest of the adapter's content).
        versions: concept -> digests, by version.
    """

    champions: dict[str, tuple[int, str]]
    versions: dict[str, list[str]]


def state_of(root: Path) -> State:
    """Read the registry; the bytes of every champion are fetched and verified."""
    from components.tracking import bundles, promotion, registry
    from components.tracking.store import open_store

    store = open_store(root)
    champions, versions = {}, {}
    for name in registry.list_models(store):
        if name == bundles.NAME:
            found = registry.versions(store, name)
            versions[name] = [each.tags["bundle/key"] for each in found]
            continue
        versions[name] = [each.tags["adapter/digest"] for each in registry.versions(store, name)]
        champion = registry.by_alias(store, name)
        if champion is not None:
            assert all(check.ok for check in promotion.verify(store, name, champion.number)), name
            champions[name] = (champion.number, champion.tags["adapter/digest"])
    return State(champions, versions)


def leftovers(root: Path) -> list[str]:
    """Runs that still say RUNNING, files that were never finished, and folders whose manifest does not hold."""
    from components.errors import IntegrityError
    from components.files import verify_manifest
    from components.tracking import registry
    from components.tracking.store import open_store

    found = [str(path.relative_to(root)) for path in (root / ".purecc" / "artifacts").rglob(".*.partial")]
    for folder in (root / ".purecc" / "artifacts").glob("*/*"):
        if folder.name.startswith("."):
            continue
        try:
            verify_manifest(folder)
        except IntegrityError as error:
            found.append(str(error))
    store = open_store(root)
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    running = store.client.search_runs(experiments, "attributes.status = 'RUNNING'")
    found += [f"run {run.info.run_name} is RUNNING" for run in running]
    for name in registry.list_models(store):
        numbers = sorted(each.number for each in registry.versions(store, name))
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"versions of {name}: {numbers}")
    return found


def orphans(root: Path) -> list[int]:
    """Processes of the project that outlived the killed one, after a moment's grace."""
    deadline = time.monotonic() + 60
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PURECC_HOME") == str(root) and process.pid != os.getpid():
                    found.append(process.pid)
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


# one row


@dataclass(frozen=True)
class Row:
    """One kill and what came after it."""

    number: int
    place: str
    after: float
    killed: bool
    code: int
    problems: list[str]

    def __str__(self) -> str:
        verdict = "; ".join(self.problems) or "as undisturbed"
        hit = "killed" if self.killed else "had ended"
        return f"| {self.number} | {self.place} | {self.after:.1f} s | {hit} | {self.code} | {verdict} |"


HEAD = "| kill | place | after | run | code of the run again | result |\n|---|---|---|---|---|---|"


def kill_once(template: Path, root: Path, number: int, place: str, seconds: float, undisturbed: State) -> Row:
    """One kill in a fresh copy, one plain run after it, and the comparison."""
    copied(template, root)
    process = start(root)
    begun = time.monotonic()
    happened = PLACES[place](root) if place != "any" else lambda: time.monotonic() - begun >= seconds
    while process.poll() is None and not happened():
        time.sleep(0.002)
    if place != "any":
        time.sleep(seconds)
    after = time.monotonic() - begun
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    problems = [f"process {pid} lives on" for pid in orphans(root)]
    again = start(root)
    code = again.wait()
    if code != 0:
        problems.append("the run again did not complete")
    try:
        found = state_of(root)
        if found.champions != undisturbed.champions:
            problems.append(f"champions {found.champions}, undisturbed {undisturbed.champions}")
        if found.versions != undisturbed.versions:
            problems.append(f"versions were lost or doubled: {found.versions}, undisturbed {undisturbed.versions}")
        problems += leftovers(root)
    except Exception as error:  # the row says it
        problems.append(f"{type(error).__name__}: {error}")
    problems += [f"process {pid} lives on after the run again" for pid in orphans(root)]
    return Row(number, place, after, killed, code, problems)


def run(kills: int, concepts: int, seed: int, folder: Path, family: Path | None = None) -> list[Row]:
    """All rows; each is printed as soon as it is there."""
    maker = projects()
    if family is None:
        from components.world.family import create_untrained

        family = folder / "family"
        create_untrained(family, size="micro", seed=0)
    template = folder / "template"
    template.mkdir(parents=True)
    maker.build(template, family, dict(list(CONCEPTS.items())[:concepts]))
    calm = copied(template, folder / "calm")
    begun = time.monotonic()
    assert start(calm).wait() == 0, (folder / "calm.log").read_text()[-3000:]
    seconds = time.monotonic() - begun
    undisturbed = state_of(calm)
    print(f"undisturbed: {seconds:.0f} s, {json.dumps(undisturbed.champions)}\n\n{HEAD}", flush=True)
    rows = []
    for number, (place, moment) in enumerate(moments(seconds, kills, random.Random(seed)), 1):
        row = kill_once(template, folder / f"kill-{number}", number, place, moment, undisturbed)
        print(row, flush=True)
        rows.append(row)
        if not row.problems:
            shutil.rmtree(folder / f"kill-{number}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--concepts", type=int, default=4, choices=range(1, len(CONCEPTS) + 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the projects are made; a failed row's stays there")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="purecc-kills-"))
    rows = run(arguments.kills, arguments.concepts, arguments.seed, folder)
    bad = [row for row in rows if row.problems]
    print(f"\n{len(rows) - len(bad)} of {len(rows)} rows as undisturbed")
    if not bad and arguments.folder is None:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    sys.exit(main())
