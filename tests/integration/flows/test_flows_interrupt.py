"""A run that ends before its end: by Ctrl-C, SIGTERM or kill -9."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
NAME = ("customize", "spotted_star", "--profile", "micro", "--json")


def wait_until(happens: object, seconds: float = 240) -> None:
    assert callable(happens)
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def checkpoints(root: Path) -> list[Path]:
    return [
        path for path in (root / ".purecc" / "work").glob("pure-learning/*/checkpoints/*") if path.suffix != ".partial"
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["SIGINT", "SIGTERM", "SIGKILL"]
)
def test_no_process_is_left_and_the_next_run_goes_on(micro_project: Any, number: signal.Signals) -> None:
    micro_project.change_profile(lambda profile: profile["learning"]["pure"].update(steps=400))
    process = micro_project.start(*NAME)
    try:
        wait_until(lambda: checkpoints(micro_project.root) or process.poll() is not None)
        assert process.poll() is None
        assert len(micro_project.servers()) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    if number != signal.SIGKILL:
        assert process.returncode == 130, err
        assert "run the same command again" in err
        assert "Traceback" not in err
    wait_until(lambda: not micro_project.servers(), seconds=30)

    done = micro_project.purecc(*NAME)
    assert done.code == 0, done.stderr
    assert done.json["reused"] == ["extractor"]
    history = next((micro_project.root / ".purecc" / "artifacts" / "pure-learning").glob("*/history.jsonl"))
    assert len(history.read_text().splitlines()) == 400
    assert not list((micro_project.root / ".purecc" / "work").glob("*/*"))
    assert micro_project.servers() == []


def test_an_error_in_a_stage_leaves_no_process_and_no_champion(micro_project: Any) -> None:
    micro_project.change_profile(
        lambda profile: profile["evaluation"]["evaluators"].update(clip="infra/models/nothing")
    )
    done = micro_project.purecc(*NAME)
    assert done.code == 1
    assert "infra/models/nothing" in done.json["error"]["message"] + str(done.json["error"].get("file"))
    assert "Traceback" not in done.stderr
    assert micro_project.servers() == []
    assert micro_project.purecc("models", "list", "--json").json == []
