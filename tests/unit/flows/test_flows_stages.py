from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.files import verify_manifest, write_manifest
from flows import stages
from flows.stages import Stage

Make = Callable[[Path], tuple[Mapping[str, Path], Mapping[str, Any]]]


class Maker:
    """Makes an artifact of one file and one folder; counts how often."""

    def __init__(self, fail: BaseException | None = None):
        self.calls, self.fail = 0, fail
        self.found_in_work: list[str] = []

    def __call__(self, work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        self.calls += 1
        self.found_in_work = sorted(path.name for path in work.iterdir())
        (work / "history.jsonl").write_text("{}\n")
        (work / "adapter").mkdir(exist_ok=True)
        (work / "adapter" / "weights").write_bytes(b"weights")
        if self.fail is not None:
            raise self.fail
        return {"history.jsonl": work / "history.jsonl", "adapter": work / "adapter"}, {"run": "r1"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, "extractor", {"data": "d", "learning": {"eta": 1.0}})


def test_made_once_and_then_used(stage: Stage) -> None:
    maker = Maker()
    first, second = stages.run(stage, maker), stages.run(stage, maker)
    assert (maker.calls, first.reused, second.reused) == (1, False, True)
    assert (second.folder / "adapter" / "weights").read_bytes() == b"weights"
    assert second.facts["run"] == "r1"
    assert second.facts["inputs"] == {"data": "d", "learning": {"eta": 1.0}}
    verify_manifest(second.folder)
    assert not stage.work.exists()


def test_the_key_follows_every_input_and_not_their_order(tmp_path: Path) -> None:
    key = Stage(tmp_path, "extractor", {"a": 1, "b": {"c": 2, "d": 3}}).key
    assert Stage(tmp_path / "elsewhere", "extractor", {"b": {"d": 3, "c": 2}, "a": 1}).key == key
    others = [("extractor", {"a": 1, "b": {"c": 2, "d": 4}}), ("pure-learning", {"a": 1, "b": {"c": 2, "d": 3}})]
    assert len({key, *(Stage(tmp_path, name, inputs).key for name, inputs in others)}) == 3


@pytest.mark.parametrize("harm", ["changed", "missing", "added", "no manifest", "facts"])
def test_an_altered_result_is_made_again_never_used(stage: Stage, harm: str) -> None:
    maker = Maker()
    folder = stages.run(stage, maker).folder
    weights = folder / "adapter" / "weights"
    if harm == "changed":
        weights.write_bytes(b"weighty")
    elif harm == "missing":
        weights.unlink()
    elif harm == "added":
        (folder / "more").touch()
    elif harm == "no manifest":
        (folder / "SHA256SUMS").unlink()
    else:  # a whole and valid artifact, of other inputs
        (folder / "stage.json").write_text('{"key": "another"}')
        write_manifest(folder)
    assert stages.find(stage) is None
    again = stages.run(stage, maker)
    assert (maker.calls, again.reused) == (2, False)
    assert weights.read_bytes() == b"weights"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_stage_leaves_no_result_and_goes_on_in_the_same_folder(
    stage: Stage, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        stages.run(stage, Maker(error))
    assert not stage.folder.exists()
    maker = Maker()
    stages.run(stage, maker)
    assert maker.found_in_work == ["adapter", "history.jsonl"]


def test_what_a_killed_publication_left_is_swept(stage: Stage) -> None:
    remains = stage.folder.parent / f".{stage.key}.abc.partial"
    remains.mkdir(parents=True)
    (remains / "half").touch()
    stages.run(stage, Maker())
    assert [path.name for path in stage.folder.parent.iterdir()] == [stage.key]


def test_two_runs_of_the_same_inputs_make_it_once(stage: Stage) -> None:
    entered, maker = threading.Event(), Maker()

    def slow(work: Path) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
        entered.set()
        thread.join(timeout=0.3)  # the other one waits for the lock meanwhile
        return maker(work)

    results: list[bool] = []
    thread = threading.Thread(target=lambda: (entered.wait(), results.append(stages.run(stage, maker).reused)))
    thread.start()
    assert not stages.run(stage, slow).reused
    thread.join(timeout=30)
    assert (results, maker.calls) == ([True], 1)
