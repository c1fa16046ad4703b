"""Where runs are killed: a project with everything embedded, or one on servers with two workers.

A site makes a fresh project, starts `purecc continual` in it, tells when a critical place is reached, kills a target
and starts again what a supervisor would start again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "flows.cli", "continual", "--profile", "micro", "--json"]
GRACE = 60.0  # seconds in which what belongs to a killed process has to end

# Where half of the kills fall: a file that is being written, or a row that has just been.
FILES = {  # below the project's .purecc
    "checkpoint": "work/*/*/checkpoints/.*.partial",
    "publication": "artifacts/*/.*.partial",
}
ROWS = {
    "upload": "SELECT count(*) FROM logged_models",
    "registration": "SELECT count(*) FROM model_versions",
    "judgement": "SELECT count(*) FROM model_version_tags WHERE key = 'gate/status'",
    "promotion": "SELECT count(*) FROM registered_model_tags WHERE key = 'promotion/intent'",
    "bundle": "SELECT count(*) FROM model_versions WHERE name = 'purecc-bundle'",
}
PLACES = (*FILES, *ROWS)


class Site:
    """A project whose runs are killed: the parts that both kinds have.

    Attributes:
        root: the project; `fresh` makes it anew from the template.
        targets: what can be killed.
    """

    targets: tuple[str, ...] = ("flow",)

    def __init__(self, template: Path, root: Path):
        self.template, self.root = template, root
        self.log = root.parent / f"{root.name}.log"
        self._made = 0
        self._runs: list[subprocess.Popen[bytes]] = []

    def fresh(self) -> None:
        """An untouched copy of the template, in a folder of its own: this process keeps databases open that it read."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._made += 1
        self.root = self.root.parent / f"project-{self._made}"
        shutil.copytree(self.template, self.root, symlinks=True)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        return {**kept, "PURECC_HOME": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

    def command(self) -> list[str]:
        return COMMAND

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            run = subprocess.Popen(self.command(), cwd=self.root, env=self.environment(), stdout=log, stderr=log)
        self._runs.append(run)
        return run

    def close(self) -> None:
        """End what still runs, where the table was cut off."""
        for run in self._runs:
            if run.poll() is None:
                run.kill()
                run.wait()

    def watch(self, place: str) -> Callable[[], bool]:
        """Whether a place was reached since this was called."""
        if place in FILES:
            state = self.root / ".purecc"
            before = set(state.glob(FILES[place]))
            return lambda: any(path not in before for path in state.glob(FILES[place]))
        count = self.counter(ROWS[place])
        first = count() or 0
        return lambda: (count() or 0) > first

    def counter(self, statement: str) -> Callable[[], int | None]:
        """How many rows of MLflow's database a statement counts; None while it cannot be asked."""
        database = self.root / "mlruns" / "mlflow.db"

        def count() -> int | None:
            if not database.is_file():
                return None
            with contextlib.suppress(sqlite3.Error):
                connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.2)
                with contextlib.closing(connection):
                    return int(connection.execute(statement).fetchone()[0])
            return None

        return count

    def kill(self, target: str, run: subprocess.Popen[bytes], source: random.Random) -> bool:
        """kill -9 the target; whether there was something to kill."""
        if run.poll() is not None:
            return False
        run.send_signal(signal.SIGKILL)
        run.wait()
        return True

    def recovered(self, target: str) -> list[str]:
        """What is wrong after the kill; here: whatever outlived the killed process."""
        return [f"process {pid} lives on" for pid in self.orphans()]

    def left_open(self) -> list[str]:
        """Flow runs that nobody will end."""
        return []

    def orphans(self) -> list[int]:
        """Processes of the project that are nobody's, after a moment's grace."""
        deadline = time.monotonic() + GRACE
        while True:
            found = [process.pid for process in self.processes() if process.pid != os.getpid()]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def processes(self, variable: str = "PURECC_HOME") -> list[psutil.Process]:
        """Processes that say in their environment that they are of this project, and have this variable."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("PURECC_HOME") == str(self.root) and variable in environment:
                    found.append(process)
        return found


class ServerSite(Site):
    """A project on the servers of infra/compose.yaml, with two workers.

    Its targets: `worker`, a worker's process alone; `machine`, a worker with everything that it runs; `training`, the
    process of a flow run; `flow`, the run that dispatches; `mlflow` and `postgres`, started again after a moment.
    """

    targets = ("worker", "flow", "mlflow", "training", "postgres", "machine")
    workers = ("worker-0", "worker-1")

    def __init__(self, template: Path, root: Path, stack: Any):
        super().__init__(template, root)
        self.stack = stack
        self._empty: dict[str, list[str]] = {}

    def set_up(self) -> None:
        """Deploy, start two workers, and note which tables a fresh server leaves empty."""
        self._copy()
        self.stack.planted["worker"] = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.stack.confined = False  # a mount goes when its folder is replaced, as `fresh` does below running workers
        self.stack.start("deployments")
        self.stack.complete("deployments")
        self.stack.scale("worker", len(self.workers))
        for database in ("mlflow", "mlflow_auth"):
            tables = self._sql(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            names = [str(row[0]) for row in tables]
            self._empty[database] = [
                name for name in names if not self._sql(database, f'SELECT 1 FROM "{name}" LIMIT 1')
            ]
        # what reads the registry in this process finds it as a client does
        os.environ.update(self.stack.client_environment())

    def _copy(self) -> None:
        """An untouched copy of the template in the same folder: the workers stand in it."""
        for entry in self.root.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.copytree(self.template, self.root, symlinks=True, dirs_exist_ok=True)

    def fresh(self) -> None:
        self._copy()
        for database, tables in self._empty.items():
            listed = ", ".join(f'"{table}"' for table in tables)
            self._sql(database, f"TRUNCATE {listed} CASCADE")
        self._sql("mlflow", "DELETE FROM experiments WHERE experiment_id <> 0")
        states = "state_type = 'CANCELLED', state_name = 'Cancelled'"
        self._sql("prefect", f"UPDATE flow_run SET {states} WHERE {_OPEN}")  # of a row that went wrong

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.stack.client_environment()}

    def command(self) -> list[str]:
        return [*COMMAND, "--workers"]

    def counter(self, statement: str) -> Callable[[], int | None]:
        connection = self._connect("mlflow")
        cursor = connection.cursor()

        def count() -> int | None:
            cursor.execute(statement)
            return int(cursor.fetchone()[0])

        return count

    def kill(self, target: str, run: subprocess.Popen[bytes], source: random.Random) -> bool:
        if run.poll() is not None:
            return False
        if target == "flow":
            return super().kill(target, run, source)
        if target == "training":
            trainings = self.processes("PREFECT__FLOW_RUN_ID")
            if not trainings:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                source.choice(trainings).kill()
        elif target == "postgres":
            self.stack.postgres.kill()
        elif target == "mlflow":
            self.stack.kill("mlflow")
        else:
            # one that trains, if there is one
            busy = [name for name in self.workers if psutil.Process(self.stack.processes[name].pid).children()]
            name = source.choice(busy or list(self.workers))
            if target == "machine":
                self.stack.kill(name)
            else:
                worker = self.stack.processes.pop(name)
                worker.kill()
                worker.wait()
        return True

    def recovered(self, target: str) -> list[str]:
        """Start again what a supervisor would."""
        time.sleep(1.0)
        if target == "postgres":
            self.stack.postgres.start()
        elif target == "mlflow":
            self.stack.start("mlflow")
            self.stack.await_health("mlflow")
        for name in self.workers:
            if name not in self.stack.processes:
                self.stack.revive(name)
        return []

    def left_open(self) -> list[str]:
        rows = self._sql("prefect", f"SELECT name, state_type::text FROM flow_run WHERE {_OPEN}")
        return [f"flow run {name} is {state}" for name, state in rows]

    def processes(self, variable: str = "PURECC_HOME") -> list[psutil.Process]:
        own = {self.stack.processes[name].pid for name in self.workers if name in self.stack.processes}
        return [process for process in super().processes(variable) if process.pid not in own]

    def _connect(self, database: str) -> Any:
        import psycopg2

        postgres = self.stack.postgres
        connection = psycopg2.connect(
            host=str(postgres.folder), port=postgres.port, user="postgres", dbname=database, connect_timeout=60
        )
        connection.autocommit = True
        return connection

    def _sql(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(self._connect(database)) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description is not None else []


_OPEN = "state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'CANCELLING')"


@contextlib.contextmanager
def server_site(template: Path, folder: Path) -> Iterator[ServerSite]:
    """A project on servers of its own, until the end of the body."""
    from prefect_site import make_deployable, micro
    from servers import compose

    make_deployable(template)
    # nothing but what is killed here is to run
    micro(template, lambda deployments: [each.pop("schedules", None) for each in deployments.values()])
    before = dict(os.environ)
    root = folder / "project"
    root.mkdir()
    try:
        with compose.running(folder / "servers", "mlflow", "prefect-services", project=root) as stack:
            site = ServerSite(template, root, stack)
            site.set_up()
            yield site
    finally:
        os.environ.clear()
        os.environ.update(before)
