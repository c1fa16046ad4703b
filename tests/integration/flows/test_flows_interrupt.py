"""A run that ends before its end: by Ctrl-C or kill -9."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from components.tracking.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
STEPS = 150
NAME = ("customize", "spotted_star", "--profile", "micro", "--json")


def wait_until(happens: Callable[[], object], seconds: float = 480) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def checkpoints(root: Path) -> list[Path]:
    folders = (root / ".purecc" / "work").glob("pure-learning/*/checkpoints/*")
    return [path for path in folders if not path.name.startswith(".")]


# SIGKILL: what it leaves of a run is the crash tests' subject, what of processes the benchmark's below
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)], ids=lambda number: number.name
)
def test_no_process_is_left_and_the_next_run_goes_on(customized: Any, number: signal.Signals) -> None:
    customized.change_profile(lambda profile: profile["learning"]["pure"].update(steps=STEPS))
    process = customized.start(*NAME)
    try:
        wait_until(lambda: checkpoints(customized.root) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        assert len(customized.servers()) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    if number != signal.SIGKILL:
        assert process.returncode == 130, err
        assert json.loads(out)["error"]["kind"] == "Interrupted"
        assert "run the same command again" in err
        assert "Traceback" not in err
    wait_until(lambda: not customized.servers(), seconds=60)

    done = customized.purecc(*NAME)
    assert done.code == 0, done.stderr
    assert done.json["reused"] == ["extractor"]
    histories = (customized.root / ".purecc" / "artifacts" / "pure-learning").glob("*/history.jsonl")
    steps = [[json.loads(line)["step"] for line in history.read_text().splitlines()] for history in histories]
    assert list(range(1, STEPS + 1)) in steps
    assert not list((customized.root / ".purecc" / "work").glob("*/*"))
    store = open_store(customized.root)
    runs = store.client.search_runs([store.experiment("spotted_star")])
    ended = {run.info.status for run in runs if run.data.tags.get("inputs/key") == runs[0].data.tags.get("inputs/key")}
    assert "RUNNING" not in {run.info.status for run in runs}  # those of the dead process were closed
    assert "KILLED" in ended


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL], ids=lambda number: number.name
)
def test_the_cells_of_a_benchmark_end_with_it(customized: Any, number: signal.Signals) -> None:
    """At once: nobody waits for the minutes that a running cell still takes."""
    root = customized.root
    plan = {"profile": "micro", "concepts": ["spotted_star"], "seeds": [3], "steps": [100_000]}
    plan["variants"] = {"lora": ["learning.method=lora"], "dop": ["learning.method=dop"]}
    (root / "plan.yaml").write_text(yaml.safe_dump(plan))

    def workers() -> list[int]:
        return [pid for pid in customized.processes() if "spawn_main" in " ".join(psutil.Process(pid).cmdline())]

    process = customized.start("benchmark", "--plan", "plan.yaml", "--out", "out", "--workers", "2", "--json")
    try:
        cells = root / ".purecc" / "work" / "measurement"
        wait_until(lambda: len(list(cells.glob("*/checkpoints/[!.]*"))) >= 2 or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        assert len(workers()) == 2
        assert len(customized.servers()) == 1
        process.send_signal(number)
        process.wait(timeout=60)
        wait_until(lambda: not customized.processes(), seconds=60)
    finally:
        process.kill()
        process.wait()
        for rest in customized.processes():
            psutil.Process(rest).kill()
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
