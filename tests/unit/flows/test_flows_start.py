"""Data that is fetched before a run: by one process at a time, and never taken for complete while it is not."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from components.concepts import versions
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


def test_what_one_left_that_was_killed_while_it_fetched_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "concepts" / "star"
    folder.mkdir(parents=True)
    for name in ("concept.yaml", "1.png", "2.png"):
        (folder / name).write_text(name)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    versions.init(tmp_path)
    versions.add(tmp_path)
    versions.push(tmp_path)

    shutil.rmtree(folder)

    def killed_half_way(root: Path, name: str) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(versions, "pull", killed_half_way)
        fetch_data(tmp_path, "star")
    assert list(folder.iterdir()) == []
    fetch_data(tmp_path, "star")
    assert len(list(folder.iterdir())) == 3
    (folder / "2.png").unlink()  # by somebody who means it
    fetch_data(tmp_path, "star")
    assert len(list(folder.iterdir())) == 2


def test_data_that_is_here_is_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("no pointer: whoever reads it fails")
    (tmp_path / "data" / "concepts" / "star").mkdir(parents=True)
    fetch_data(tmp_path, "star")
    assert not (tmp_path / ".purecc").exists()
    with pytest.raises(InvalidInput):
        fetch_data(tmp_path, "circle")
