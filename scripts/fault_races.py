"""Rows of the fault table: promoters that are killed, and promoters that race."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import racing
from fault_bench import (
    CONCEPT,
    RACERS,
    UNCOMPARED,
    Bench,
    Row,
    register,
    row,
)

from components.tracking import promotion, succession
from components.tracking.store import Store, open_store


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
