"""How a run over many concepts ends, and what people read of it."""

from __future__ import annotations

import time

import pytest

from components.settings import ContinualSettings
from flows.ci import gate_table, validation_table
from flows.concept_runs import Budget
from flows.run_summary import ConceptResult, RunSummary


def summary(*statuses: str, minimum: float = 0.5, **checks: str) -> RunSummary:
    results = [ConceptResult(f"c{number}", status, "because") for number, status in enumerate(statuses)]  # type: ignore[arg-type]
    return RunSummary("independent", results, minimum, checks)


@pytest.mark.parametrize(
    ("statuses", "minimum", "state"),
    [
        ((), 0.5, "completed"),
        (("promoted", "reused", "retired", "learned"), 1.0, "completed"),
        (("promoted", "left"), 1.0, "completed"),
        (("promoted", "failed"), 0.5, "completed with failures"),
        (("promoted", "failed"), 0.51, "failed"),
        (("reused", "refused", "quarantined"), 0.5, "failed"),
        (("failed",), 0.0, "completed with failures"),
        (("failed", "left", "left"), 0.5, "failed"),
    ],
)
def test_the_three_ends(statuses: tuple[str, ...], minimum: float, state: str) -> None:
    assert summary(*statuses, minimum=minimum).state == state


def test_whatever_did_not_go_well_is_named() -> None:
    bleeds = "together/bleed_max = 1, needs <= 0.1"
    found = summary("promoted", "failed", "quarantined", "left", minimum=0.3, refused=bleeds)
    assert found.message == (
        f"completed with failures: 1 promoted, 1 failed (c1), 1 quarantined (c2), 1 left (c3), {bleeds}"
    )
    assert summary("promoted", refused="x").state == "completed with failures"


def test_caps_stop_new_work_and_say_which() -> None:
    assert Budget(ContinualSettings()).exhausted() is None
    spent = Budget(ContinualSettings(wall_clock_seconds=10), begun=time.monotonic() - 11)
    assert "wall-clock" in str(spent.exhausted())
    gpu = Budget(ContinualSettings(gpu_seconds=10), gpu_seconds=9.0)
    assert gpu.exhausted() is None
    gpu.gpu_seconds += 1
    assert "GPU" in str(gpu.exhausted())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_what_a_stranger_wrote_stays_text_in_the_comment() -> None:
    hostile = "a | b <img src=x> @team `x`\n# head [l](http://e)"
    finding = {"kind": "error", "field": "text", "problem": hostile, "mend": "mend"}
    table = validation_table(
        [{"name": "star", "change": "modified", "verdict": "not valid", "findings": [finding]}], "0" * 40, ["learning"]
    )
    row = next(line for line in table.splitlines() if "text" in line)
    assert len(cells(row)) == 5
    assert not set("<@`[]") & set(row)
    assert "learning" in table
    assert "No concept differs" in validation_table([], "0" * 40, [])


def test_the_gate_table_shows_each_gate() -> None:
    gate = {"metric": "fidelity/dino", "value": 0.25, "bound": ">= 0.3", "champion": None, "passed": False}
    (row,) = [line for line in gate_table("star", 3, "refused", [gate]).splitlines() if "dino" in line]
    assert cells(row) == ["fidelity/dino", "0.25", ">= 0.3".replace("<", "&lt;"), "-", "**failed**"]
