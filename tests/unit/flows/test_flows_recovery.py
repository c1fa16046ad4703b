"""Which flow runs have lost their process: the server's runs, workers and clocks are made up, the decision is ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from mlflow.exceptions import MlflowException, RestException

from components.tracking import liveness
from components.tracking.liveness import ProcessIdentity
from components.tracking.store import is_away
from flows import concept_runs, recovery

NOW, LONG_AGO = timedelta(), timedelta(seconds=liveness.SILENCE + 60)  # before the test, which may run long after this
HERE = liveness.this_process()
DEAD = ProcessIdentity(HERE.host, HERE.pid, "1")
ELSEWHERE = ProcessIdentity("another/boot/1", 1, "1")


def run(
    identity: ProcessIdentity | None, *, worker: str | None = "w", pool: str | None = "pool", since: timedelta = NOW
) -> Any:
    tags = [] if identity is None else [f"process:{identity.host}:{identity.pid}:{identity.started}"]
    labels = {} if worker is None else {"prefect.worker.name": worker}
    return SimpleNamespace(tags=tags, labels=labels, work_pool_name=pool, state=SimpleNamespace(timestamp=since))


def client(status: str = "ONLINE", heard: timedelta = NOW, kind: str = "process") -> Any:
    def workers(pool: str) -> list[Any]:
        return [SimpleNamespace(name="w", status=status, last_heartbeat_time=datetime.now(UTC) - heard)]

    return SimpleNamespace(read_work_pool=lambda name: SimpleNamespace(type=kind), read_workers_for_work_pool=workers)


@pytest.mark.parametrize(
    ("flow_run", "server", "dead"),
    [
        (run(HERE), client("OFFLINE", LONG_AGO), False),  # its process is seen
        (run(DEAD), client(), True),
        (run(ELSEWHERE), client("OFFLINE"), False),  # a machine that is silent for a moment
        (run(ELSEWHERE), client("OFFLINE", LONG_AGO), True),
        (run(ELSEWHERE, pool=None), client(), False),  # of a person on another machine: nobody can tell
        (run(None), client(), False),
        (run(None), client("OFFLINE"), True),  # its worker died before anything of ours began
        (run(None, worker="another"), client(), True),
        (run(None, worker=None), client(), False),  # just claimed
        (run(None, worker=None, since=LONG_AGO), client(), True),
        (run(None), client("OFFLINE", LONG_AGO, kind="kubernetes"), False),  # a job outlives its worker
        (run(None, pool=None), client(), False),
    ],
)
def test_a_flow_run_is_dead_when_its_process_or_its_worker_is(flow_run: Any, server: Any, dead: bool) -> None:
    flow_run.state.timestamp = datetime.now(UTC) - flow_run.state.timestamp
    assert recovery._is_dead(flow_run, server) is dead


def test_a_server_that_is_being_restarted_is_waited_for_and_another_error_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concept_runs, "_POLL_SECONDS", 0.0)
    request = httpx.Request("GET", "http://server")
    away = [
        httpx.ConnectError("refused"),
        httpx.HTTPStatusError("500", request=request, response=httpx.Response(500)),
        MlflowException("API request to http://server failed with exception: refused"),
        RestException({"error_code": "INTERNAL_ERROR", "message": "the database"}),
    ]
    answers: list[Exception | str] = [*away, "answered"]

    def call(argument: int) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return f"{answer} {argument}"

    assert concept_runs._patiently(call, 7) == "answered 7"
    missing = httpx.HTTPStatusError("404", request=request, response=httpx.Response(404))
    for error in (missing, MlflowException("No such artifact: 'adapter'"), ValueError("a value")):
        answers[:] = [error, "answered"]
        with pytest.raises(type(error)):
            concept_runs._patiently(call, 7)


def test_what_an_mlflow_server_says_of_a_thing_is_no_absence_of_the_server() -> None:
    assert not is_away(RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}))
    assert not is_away(MlflowException("a wrong argument"))
    assert is_away(MlflowException("(sqlite3.OperationalError) database is locked"))
