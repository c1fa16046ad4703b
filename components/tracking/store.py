"""The tracking store: embedded under `mlruns/` of the project, or wherever `MLFLOW_TRACKING_URI` points.

MLflow writes absolute artifact paths into its database. When the project was moved or copied, they are rewritten, in
one transaction, the next time the store is opened. The location of experiment 0 tells where the store was last at
home; the database itself is the only record, so there is nothing that could disagree with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from filelock import FileLock

import components.quiet  # noqa: F401  (before mlflow)
from components.errors import InvalidInput
from components.secrets import redact, split_userinfo
from components.tracking.locks import Lock, file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# Where MLflow keeps absolute paths.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


class PassingOver(contextlib.AbstractContextManager[None, bool]):
    """Ends its block at an MLflow error of one code, as if it had gone through; every other error is raised."""

    def __init__(self, error_code: str):
        self._error_code = error_code

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        from mlflow.exceptions import MlflowException

        return isinstance(error, MlflowException) and error.error_code == self._error_code


ABSENT, THERE = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
"""MLflow's error codes of what is asked for in vain, and of what is made twice."""

_activation = threading.Lock()


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        root: the project's folder; locks live under it.
        uri: MLflow tracking and registry URI.
        artifacts: folder of the embedded store's artifacts; None where a server decides.
        across_hosts: a lock that other machines see, too; None: only processes of this machine use the store.
    """

    root: Path
    uri: str
    artifacts: Path | None
    across_hosts: Lock | None = field(default=None, compare=False)

    @cached_property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri, self.uri)  # the registry's default is whatever was activated last

    def activate(self) -> None:
        """Point MLflow's fluent interface (model logging, artifact downloads) at this store.

        MLflow also writes what it is told into the environment; that is undone, for a store opened later in this
        process would take it for the user's choice.
        """
        import mlflow

        with _activation:  # a second thread would keep what the first one is about to undo
            before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    @contextlib.contextmanager
    def lock(self, subject: str, timeout: float = 600) -> Iterator[None]:
        """Hold a subject, e.g. the registry of one concept, against every other user of the store.

        Raises:
            LockNotTaken: another holder did not let go in time.
        """
        with file_lock(self.root / ".purecc" / "locks")(subject, timeout):
            if self.across_hosts is None:
                yield
            else:  # taken second: the waiters of one machine wait at its file, only one of them asks the server
                with self.across_hosts(subject, timeout):
                    yield

    def experiment(self, concept: str) -> str:
        """Id of the experiment `purecc/<concept>`, made if it is not there."""
        from mlflow.exceptions import MlflowException

        name = f"purecc/{concept}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = _location(self.artifacts / concept) if self.artifacts else None
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def embedded_database(root: Path) -> Path:
    return root / "mlruns" / "mlflow.db"


def is_empty(root: Path) -> bool:
    """Whether nothing was ever tracked here: an embedded store that does not exist yet (answers without MLflow)."""
    return not os.environ.get("MLFLOW_TRACKING_URI") and not embedded_database(root).is_file()


def open_store(root: Path, across_hosts: Lock | None = None) -> Store:
    """Open the store of the project at `root`; make or relocate the embedded one where necessary.

    The first touch of a SQLite store runs MLflow's migrations, which break when two processes run them at once: it is
    done under a file lock and into a temporary name, so that a killed first touch leaves nothing behind.

    Args:
        across_hosts: the lock to use where the store is on a server; the embedded one needs none.
    """
    root = root.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return Store(root, _without_password(uri), None, across_hosts)
    database, artifacts = embedded_database(root), root / "mlruns" / "artifacts"
    if not database.is_file() or _home(database) != artifacts:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.parent / ".lock", timeout=300):
            if not database.is_file():
                _create(database, artifacts)
            if (home := _home(database)) != artifacts:
                _relocate(database, home, artifacts)
    return Store(root, _uri(database), artifacts)


def _without_password(uri: str) -> str:
    """The address of a server without user and password: MLflow prints it; they go where MLflow looks for them."""
    if not uri.startswith(("http://", "https://")):
        return uri
    bare, user, password = split_userinfo(uri)
    if user is not None:
        os.environ["MLFLOW_TRACKING_URI"] = bare
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password or ""
    return bare


def explained(error: BaseException) -> InvalidInput | None:
    """What a person can do about an error of an MLflow server; None if it is another error.

    The error is known by name: MLflow need not be imported to ask.
    """
    if not any(kind.__name__ == "MlflowException" for kind in type(error).__mro__):
        return None
    message, where = str(error), redact(os.environ.get("MLFLOW_TRACKING_URI", "the tracking store"))
    if "error code 401" in message or "not authenticated" in message:
        mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return InvalidInput("MLflow asks for a user and a password, and takes not the one given", file=where, mend=mend)
    if "error code 403" in message or "PERMISSION_DENIED" in message or "Permission denied" in message:
        if "Invalid Host header" in message:
            mend = "add the host to MLFLOW_SERVER_ALLOWED_HOSTS of the server"
            return InvalidInput("the MLflow server does not answer under this name", file=where, mend=mend)
        mend = "ask who made the experiment or the model, or an administrator, for the permission"
        return InvalidInput("this user may not do that", file=where, field="MLFLOW_TRACKING_USERNAME", mend=mend)
    if _unreachable(message):
        mend = "start the server, or correct or unset MLFLOW_TRACKING_URI; purecc doctor says more"
        return InvalidInput("the MLflow server does not answer", file=where, field="MLFLOW_TRACKING_URI", mend=mend)
    return None


def is_away(error: BaseException) -> bool:
    """Whether an error says that an MLflow server, or a database, does not answer just now."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "RestException" in kinds and getattr(error, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
        return True
    return "MlflowException" in kinds and (_unreachable(str(error)) or "database is locked" in str(error))


def _unreachable(message: str) -> bool:
    return "failed with exception" in message or "Max retries exceeded" in message


def _uri(database: Path) -> str:
    if not set(str(database)) & set("%?#"):
        return f"sqlite:///{database}"
    from sqlalchemy import URL  # escapes as its version parses

    return URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)


def _location(folder: Path) -> str:
    """A folder as MLflow takes it: it reads %41 in a plain path as A."""
    return folder.as_uri() if "%" in str(folder) else str(folder)


def _create(database: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = database.with_suffix(".partial.db")
    temporary.unlink(missing_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    alembic = logging.getLogger("mlflow.store.db.utils")
    level = alembic.level
    alembic.setLevel(logging.WARNING)
    try:
        store = SqlAlchemyStore(_uri(temporary), _location(artifacts))
        store.engine.dispose()
    finally:
        alembic.setLevel(level)
    # The new database may still be in SQLite's write-ahead mode or not; either way all of it has to be in the one file.
    with sqlite3.connect(temporary) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    temporary.replace(database)


def _home(database: Path) -> Path | None:
    """The artifacts folder that the database's paths speak of; None where it is not one of ours."""
    try:
        row = _first_location(database, "ro")
    except sqlite3.OperationalError:  # a writer was killed in the middle: what it began is undone by who may write
        row = _first_location(database, "rw")
    location = str(row[0]) if row else ""
    home = Path(unquote(location.removeprefix("file://")) if location.startswith("file://") else location).parent
    return home if home.parts[-2:] == ("mlruns", "artifacts") else None


def _first_location(database: Path, mode: str) -> tuple[str] | None:
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode={mode}", uri=True, timeout=60)
    try:
        row: tuple[str] | None = connection.execute(
            "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        ).fetchone()
        return row
    finally:
        connection.close()


def _relocate(database: Path, old: Path | None, new: Path) -> None:
    connection = sqlite3.connect(database, timeout=60)
    try:
        with connection:
            if old is not None:
                logger.info("the project moved: artifact paths of the tracking store change from %s to %s", old, new)
                for table, column in _LOCATIONS:
                    for prefix in (str(old), old.as_uri()):
                        _replace_prefix(connection, table, column, f"{prefix}/", f"{_location(new)}/")
            location = _location(new / "0")
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (location,))
    finally:
        connection.close()


def _replace_prefix(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    # table and column are those of _LOCATIONS
    statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
    connection.execute(statement, (new, len(old) + 1, len(old), old))
