"""The fault table of docs/faults.md, its embedded part: every fault ends in the right champion, with a message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
CHAMPION = {  # of faults that a fresh process, or the registry before it, has to find
    "none, by the way of the following ones": 4,
    "truncated safetensors": 2,
    "header that states a terabyte": 2,
    "pickle renamed to .safetensors": 2,
    "NaN weights": 2,
    "adapter without effect": 2,
    "wrong base": 2,
}
BY_SERVABILITY = ("NaN weights", "adapter without effect", "wrong base")


@pytest.mark.long
def test_every_fault_ends_in_the_right_champion(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "fault_table.py"), "--only", "embedded", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'scripts'}"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.stdout, done.stderr
    rows = {row["fault"]: row for row in json.loads(done.stdout)}
    assert [fault for fault, row in rows.items() if not row["right"]] == []
    assert {fault: rows[fault]["champion"] for fault in CHAMPION} == {
        fault: f"version {number}" for fault, number in CHAMPION.items()
    }
    for fault in BY_SERVABILITY:  # refused by the blessing, not by a check that this table makes
        assert "is not promoted: servability: a fresh process cannot serve it" in rows[fault]["message"]
    assert {"promote killed before its write 1", "rollback killed before its write 1"} <= set(rows)
    assert done.returncode == 0
