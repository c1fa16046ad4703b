from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.settings import Gate
from components.tracking import promotion, registry, runs
from components.tracking.gates import judge
from components.tracking.store import Store, is_empty, open_store


def _champion(store: Store, adapter: Path) -> str:
    with runs.run(store, "star", "customize") as tracker:
        version = registry.register(store, "star", adapter, run_id=tracker.run_id, base={}, tags={})
    report = judge({"m": 1.0}, {"m": Gate()})
    promotion.record_judgement(store, "star", version.number, report, key="k", against=None)
    promotion.promote(store, "star", version.number, reason="tried")
    return tracker.run_id


@pytest.mark.parametrize("move", [lambda old, new: old.rename(new), shutil.copytree], ids=["moved", "copied"])
def test_a_moved_project_keeps_its_artifacts_and_writes_new_ones_where_it_stands(
    store: Store, make_adapter: Callable[..., Path], tmp_path: Path, move: Callable[[Path, Path], object]
) -> None:
    adapter = make_adapter(b"weights")
    run_id = _champion(store, adapter)
    new = tmp_path / "elsewhere" / "with space, %41 and é"
    new.parent.mkdir()
    move(store.root, new)
    if store.root.exists():  # a copy must not lean on its original
        shutil.rmtree(store.root / "mlruns" / "artifacts")
    moved = open_store(new)
    assert [check.ok for check in promotion.verify(moved, "star")] == [True]
    moved.client.log_text(run_id, "more", "note.txt")
    with runs.run(moved, "star", "second") as tracker:
        moved.client.log_text(tracker.run_id, "text", "note.txt")
    with runs.run(moved, "heart", "a new experiment") as other:
        moved.client.log_text(other.run_id, "text", "note.txt")
    notes = sorted(path.relative_to(new).parts[:3] for path in new.rglob("note.txt"))
    assert notes == [("mlruns", "artifacts", "heart"), *[("mlruns", "artifacts", "star")] * 2]
    _champion(moved, make_adapter(b"other weights", "second"))
    assert registry.aliases(moved, "star") == {"champion": 2, "previous": 1}


def test_first_touch_by_several_processes_at_once_gives_one_sound_store(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    code = (
        "import sys, pathlib; from components.tracking.store import open_store; from components.tracking import runs\n"
        "store = open_store(pathlib.Path(sys.argv[1]))\n"
        "with runs.run(store, 'star', sys.argv[2]) as tracker: tracker.log_metrics({'m': 1.0}, 0)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(root), f"run {number}"], env=environment)
        for number in range(3)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0, 0]
    store = open_store(root)
    found = store.client.search_runs([store.experiment("star")])
    assert sorted(run.info.run_name for run in found) == ["run 0", "run 1", "run 2"]
    assert all(run.data.metrics == {"m": 1.0} for run in found)


def test_a_first_touch_that_was_killed_leaves_nothing_that_looks_like_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.partial.db").write_bytes(b"half a database")
    assert is_empty(tmp_path)
    store = open_store(tmp_path)
    assert store.experiment("star")
    assert not is_empty(tmp_path)


# Killed when part of a transaction is in the database's file already: a small cache spills.
KILLED_WRITER = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE experiments SET artifact_location = '/nowhere'")
for number in range(1000):
    connection.execute("INSERT INTO experiment_tags VALUES (?, ?, '0')", (f"key {number}", "x" * 1000))
os.kill(os.getpid(), 9)
"""


def test_a_store_whose_writer_was_killed_in_the_middle_opens_as_it_was_before(store: Store) -> None:
    database = store.root / "mlruns" / "mlflow.db"
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(database)], check=False)
    assert database.with_name("mlflow.db-journal").stat().st_size > 0
    opened = open_store(store.root)
    assert opened.client.get_experiment("0").artifact_location == str(store.root / "mlruns" / "artifacts" / "0")
    assert opened.client.get_experiment("0").tags == {}


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    store = open_store(tmp_path)
    assert (store.uri, store.artifacts) == ("http://tracking.example:5000", None)
    assert not (tmp_path / "mlruns").exists()


def test_activating_a_store_does_not_bind_the_process_to_it(store: Store, migrated_store: Path, tmp_path: Path) -> None:
    store.activate()
    second = tmp_path / "second"
    shutil.copytree(migrated_store, second)
    assert open_store(second).uri == f"sqlite:///{second}/mlruns/mlflow.db"


def test_a_deleted_experiment_is_restored_when_its_concept_trains_again(store: Store) -> None:
    number = store.experiment("star")
    store.client.delete_experiment(number)
    assert store.experiment("star") == number
    assert store.client.get_experiment(number).lifecycle_stage == "active"
