"""Data that is fetched before a run: by one process at a time, and never taken for complete while it is not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from components.errors import InvalidInput
from components.tracking.locks import file_lock
from flows.start import fetch_data


@pytest.mark.parametrize("begun", [True, False])
def test_data_that_another_process_fetches_is_waited_for(begun: bool, tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("no pointer: whoever reads it fails")
    folder = tmp_path / "data" / "concepts" / "star"
    waiting = threading.Thread(target=fetch_data, args=(tmp_path, "star"))
    with file_lock(tmp_path / ".purecc" / "locks")("data", timeout=1):
        if begun:
            folder.mkdir(parents=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        folder.mkdir(parents=True, exist_ok=True)
    waiting.join(30)
    assert not waiting.is_alive()


def test_data_that_is_here_is_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("no pointer: whoever reads it fails")
    (tmp_path / "data" / "concepts" / "star").mkdir(parents=True)
    fetch_data(tmp_path, "star")
    assert not (tmp_path / ".purecc").exists()
    with pytest.raises(InvalidInput):
        fetch_data(tmp_path, "circle")
