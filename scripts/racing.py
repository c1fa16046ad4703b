"""Promoters that race for one alias: who they are, and whether what they left is right.

    python scripts/racing.py CONCEPT FOLDER 1,2 3,4 [--die-before WRITE]

Promotes versions at once: a process for each argument, in it a thread for each version. With --die-before a process is
killed before its first such write to the registry, e.g. `set_registered_model_alias`: the move is written down then,
and not carried out. The servers are those of the environment (`MLFLOW_TRACKING_URI`, `PREFECT_API_URL`). Every promoter
gets a project of its own below FOLDER, as on a host of its own: the file lock of one does not hold the others, that of
the servers has to. `scripts/fault_table.py` and the tests start this program.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import components.quiet  # noqa: F401  (before every dependency)
from components.settings import Gate
from components.tracking import promotion, registry, runs, succession
from components.tracking.gates import GateReport, judge
from components.tracking.store import Store

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
_SECONDS = 600.0  # that the others are waited for before the start; machines that run tests are busy


def register(
    store: Store,
    concept: str,
    adapter: Path,
    score: float,
    base: Mapping[str, Any] | None = None,
    recording: Path | None = None,
) -> int:
    """Register an adapter folder with a made-up score, and judge it by the bound alone.

    Args:
        base, recording: what a consumer needs to load it, see `registry.register`; without them nobody can.
    """
    tags = {"score": str(score)}
    with runs.run(store, concept, "customize") as tracker:
        number = registry.register(
            store, concept, adapter, run_id=tracker.run_id, base=base or {}, tags=tags, recording=recording
        ).number
    judged(store, concept, number)(None)
    return number


def judged(store: Store, concept: str, number: int, requires: Sequence[str] = ()) -> Callable[[Any], GateReport]:
    """A judge of a version against a champion, by the scores that their tags state.

    Args:
        requires: blessings that are asked for besides.
    """

    def against(champion: Any) -> GateReport:
        score = float(registry.version(store, concept, number).tags["score"])
        reference = {"quality": float(champion.tags["score"])} if champion else None
        report = judge({"quality": score}, GATES, reference)
        digest = champion.tags["adapter/digest"] if champion else None
        promotion.record_judgement(store, concept, number, report, key="k", against=digest, requires=requires)
        return report

    return against


def start_over(store: Store, concept: str, scores: Mapping[int, float]) -> None:
    """Undo what a race left, and give versions new scores, judged by the bound alone: registering takes longest."""
    for alias in registry.aliases(store, concept):
        store.client.delete_registered_model_alias(registry.model_name(concept), alias)
    for key in (succession.STATE, succession.INTENT):
        registry.remove_model_tag(store, concept, key)
    for each in registry.versions(store, concept):
        for key in [key for key in each.tags if key.startswith("promotion/")]:
            registry.remove_tag(store, concept, each.number, key)
    for number, score in scores.items():
        registry.set_tags(store, concept, number, {"score": str(score)})
        judged(store, concept, number)(None)


def die_at(store: Store, number: int, writes: Sequence[str] = WRITES) -> None:
    """From now on this process kills itself before its write `number` (from 0) to the store's registry.

    Args:
        writes: which methods of MLflow's client count.
    """
    done = 0
    for name in writes:
        real = getattr(store.client, name)

        def write(*arguments: Any, real: Any = real, **more: Any) -> Any:
            nonlocal done
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return real(*arguments, **more)

        setattr(store.client, name, write)


@dataclass(frozen=True)
class Outcome:
    """What a race left.

    Attributes:
        champion: the version that bears the alias.
        moves: how often the alias moved.
        problems: what is wrong, in words; nothing: all is right.
    """

    champion: int | None
    moves: int
    problems: tuple[str, ...]


def outcome(store: Store, concept: str, raced: Collection[int]) -> Outcome:
    """Check what a race left: one champion, the best that passed; every promotion counted once; nothing half-done.

    Args:
        raced: the versions that took part.
    """
    versions = [each for each in registry.versions(store, concept) if each.number in raced]
    scores = {each.number: float(each.tags["score"]) for each in versions}
    best = max(scores, key=lambda number: scores[number])
    champion = registry.aliases(store, concept).get(registry.CHAMPION)
    state = succession.state(store, concept)
    problems = []
    if champion != best:
        problems.append(f"the champion is {champion}, the best is {best}")
    if succession.pending(store, concept) is not None:
        problems.append("a move is half-done")
    if state is None or state.champion != champion:
        problems.append(f"the state says {state}")
    problems += [f"version {each.number} was not judged" for each in versions if each.status == "not judged"]
    promoted = {int(each.tags["promotion/sequence"]): each for each in versions if "promotion/sequence" in each.tags}
    counted = state.sequence if state else 0
    if sorted(promoted) != list(range(1, counted + 1)):  # two that were inside at once would count the same
        problems.append(f"moves {sorted(promoted)} are kept, {counted} were counted")
    before = None
    for sequence in sorted(promoted):
        each = promoted[sequence]
        replaced = each.tags.get("promotion/replaced")
        if replaced != (None if before is None else str(before)):
            problems.append(f"version {each.number} replaced {replaced}, the champion was {before}")
        if before is not None and scores[each.number] < scores[before]:
            problems.append(f"version {each.number} is worse than {before}, which it replaced")
        before = each.number
    return Outcome(champion, counted, tuple(problems))


def race(
    concept: str, folder: Path, promoters: Sequence[Sequence[int]], environment: Mapping[str, str], *options: str
) -> list[int]:
    """Let promoters go at once, and wait; gives the exit code of each process (-9: killed).

    Args:
        folder: a new one, for their projects and what they say (`log`).
        promoters: the versions of each process, which promotes them by as many threads.
        environment: of the processes.
        options: of this program.
    """
    folder.mkdir(parents=True)
    groups = [",".join(map(str, numbers)) for numbers in promoters]
    command = [sys.executable, str(Path(__file__).resolve()), concept, str(folder), *groups, *options]
    with (folder / "log").open("wb") as log:
        subprocess.run(command, env=environment, cwd=folder, stdout=log, stderr=log, check=True)
    found: list[int] = json.loads((folder / "exit-codes.json").read_text())
    return found


def run(concept: str, folder: Path, groups: Sequence[Sequence[int]], die_before: str | None) -> list[int]:
    """The processes of a race, forked after the imports, which take longer than all the rest."""
    import mlflow.store.artifact.mlflow_artifacts_repo  # noqa: F401
    import prefect.client.orchestration
    import prefect.concurrency.sync  # noqa: F401

    children = []
    for numbers in groups:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = promote_all(concept, folder, numbers, die_before)
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    wanted, deadline = {f"ready-{number}" for numbers in groups for number in numbers}, time.monotonic() + _SECONDS
    while not wanted <= {file.name for file in folder.iterdir()} and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / "go").touch()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def promote_all(concept: str, folder: Path, numbers: Sequence[int], die_before: str | None) -> int:
    """One process: a thread for each version; 0 if all of them came to an end."""
    from flows.locks import open_shared_store, prefect_lock

    ended: list[int] = []

    def promote(number: int) -> None:
        root = folder / f"host-{number}"
        root.mkdir()
        store = open_shared_store(root)
        assert store.across_hosts is prefect_lock, "PREFECT_API_URL is not set: nothing would hold the others"
        registry.by_alias(store, concept)
        (folder / f"ready-{number}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        if die_before is not None:
            die_at(store, 0, (die_before,))
        promotion.promote_best(store, concept, number, judged(store, concept, number))
        ended.append(number)

    threads = [threading.Thread(target=promote, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if len(ended) == len(numbers) else 1


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concept")
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="+", metavar="NUMBER[,NUMBER...]")
    parser.add_argument("--die-before", choices=WRITES)
    given = parser.parse_args()
    groups = [[int(number) for number in group.split(",")] for group in given.groups]
    codes = run(given.concept, given.folder, groups, given.die_before)
    (given.folder / "exit-codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
