"""Runs whose process died, on a real store and with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from components.planning import KEY
from components.tracking import liveness, runs
from components.tracking.failures import failures
from components.tracking.liveness import HEARTBEAT, HOST, ProcessIdentity
from components.tracking.store import Store

HOLDER = """
import sys
from pathlib import Path
from components.tracking import runs
from components.tracking.store import open_store
with runs.run(open_store(Path(sys.argv[1])), "star", "customize star") as tracker:
    print(tracker.run_id, flush=True)
    sys.stdin.read()
"""


def status(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def test_a_killed_process_leaves_a_running_run_and_the_next_one_closes_it_alone(store: Store) -> None:
    with runs.run(store, "star", "of this process") as mine:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        assert liveness.close_dead_runs(store) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        store.client.set_tag(run_id, HEARTBEAT, str(int(time.time()) + 1000))
        last = int(store.client.get_run(run_id).data.tags[HEARTBEAT])
        assert status(store, run_id) == "RUNNING"  # what MLflow leaves
        assert liveness.close_dead_runs(store) == [run_id]
        assert status(store, run_id) == "KILLED"
        assert store.client.get_run(run_id).info.end_time == 1000 * last  # not when somebody came to look
        assert "its process died" in store.client.get_run(run_id).data.tags["error"]
        assert liveness.close_dead_runs(store) == []
        assert status(store, mine.run_id) == "RUNNING"
    assert status(store, mine.run_id) == "FINISHED"


def test_a_number_that_another_process_got_is_not_the_dead_one() -> None:
    me = liveness.this_process()
    assert me.alive is True
    assert ProcessIdentity(me.host, me.pid, "1").alive is False
    assert ProcessIdentity.of_tags(me.tags) == me
    assert ProcessIdentity.of_tags({HOST: "h"}) is None


def test_what_is_dead_but_not_buried_is_dead() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    me = liveness.this_process()
    time.sleep(0.2)
    assert ProcessIdentity(me.host, child, "1").alive is False
    os.waitpid(child, 0)


def test_of_another_machine_the_heartbeat_decides() -> None:
    elsewhere = {**ProcessIdentity("another/boot/1", 1, "1").tags, HEARTBEAT: "1000"}
    assert not liveness.is_dead(elsewhere, 1000 + liveness.SILENCE - 1)
    assert liveness.is_dead(elsewhere, 1000 + liveness.SILENCE + 1)
    assert not liveness.is_dead({}, 1e12)  # not one of ours


def test_the_heartbeat_goes_on_while_the_run_does(store: Store) -> None:
    with runs.run(store, "star", "beats") as tracker:
        store.client.set_tag(tracker.run_id, HEARTBEAT, "0")
        with liveness.heartbeat(store, tracker.run_id, interval=0.05):
            deadline = time.monotonic() + 60
            while store.client.get_run(tracker.run_id).data.tags[HEARTBEAT] == "0":
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_gpu_seconds_are_those_of_every_run_of_the_flow_run(store: Store) -> None:
    """Two runs of 30 s on two GPUs, one of them killed; one of another flow run; one without a GPU."""
    experiment = store.experiment("star")
    for flow_run, gpus, killed in (("a", 2, False), ("a", 2, True), ("b", 8, False), ("a", 0, False)):
        tags = {runs.FLOW_RUN: flow_run, runs.GPUS: str(gpus), HEARTBEAT: "1030"}
        made = store.client.create_run(experiment, start_time=1_000_000, tags=tags)
        if not killed:
            store.client.set_terminated(made.info.run_id, "FINISHED", 1_030_000)
    assert runs.gpu_seconds(store, "star", "a") == 120.0
    assert runs.gpu_seconds(store, "star", "b") == 240.0
    assert runs.gpu_seconds(store, "star", "c") == 0.0


def test_failures_are_counted_by_inputs_and_interruptions_are_none(store: Store) -> None:
    for key, error in (
        ("k", RuntimeError("first")),
        ("k", KeyboardInterrupt()),
        ("k", OSError(28, "No space left on device")),
        ("other", RuntimeError("x")),
    ):
        with pytest.raises(type(error)), runs.run(store, "star", "customize star", tags={KEY: key}):
            raise error
    assert failures(store, "star", "k").count == 1
    assert failures(store, "star", "k").reason == "first"
    assert failures(store, "moon", "k").count == 0
