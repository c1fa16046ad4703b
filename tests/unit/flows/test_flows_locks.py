"""Which lock a store is opened with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.planning import Decision
from flows import concept_runs, run_record
from flows.locks import open_shared_store, prefect_lock

SERVER = "http://mlflow.example:5000"


@pytest.mark.parametrize(
    ("mlflow", "prefect", "warns"),
    [("sqlite:////a/file.db", None, False), (SERVER, None, True), (SERVER, "http://prefect.example/api", False)],
)
def test_a_store_on_a_server_that_nothing_locks_across_hosts_says_so_when_it_is_locked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mlflow: str,
    prefect: str | None,
    warns: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("PREFECT_API_URL", prefect or "")
    store = open_shared_store(tmp_path)
    assert (store.across_hosts is prefect_lock) == (prefect is not None)
    assert caplog.text == ""  # who only reads hears nothing
    if prefect is None:
        with store.lock("registry-star"):
            pass
    assert ("another host may move the same aliases" in caplog.text) == warns
    assert ("PREFECT_API_URL" in caplog.text) == warns


class Opened(Exception):
    """The store was opened with the lock that this test looks for."""


@pytest.mark.parametrize(
    "act",
    [
        lambda root: concept_runs.settle(Decision("star", "retire", "its data is gone", 1)),
        lambda root: run_record.record_run(root, _profile(), "independent").__enter__(),
    ],
    ids=["retire", "bundle"],
)
def test_whoever_moves_an_alias_holds_the_lock_across_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], Any]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PURECC_HOME", str(tmp_path))

    def stop(store: Any, *arguments: Any, **more: Any) -> None:
        raise Opened(store.across_hosts)

    monkeypatch.setattr("components.tracking.retirement.retire", stop)
    monkeypatch.setattr("components.tracking.runs.run", stop)
    with pytest.raises(Opened) as found:
        act(tmp_path)
    assert found.value.args == (prefect_lock,)


def _profile() -> Any:
    from components.settings import load_profile

    return load_profile(str(Path(__file__).resolve().parents[3] / "profiles" / "tiny.yaml"))
