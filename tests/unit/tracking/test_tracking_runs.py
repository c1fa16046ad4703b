from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from components.errors import PureCCError
from components.tracking import runs
from components.tracking.runs import RunTracker, flatten, read_history
from components.tracking.store import Store

STEP = {f"metric/{number}": float(number) for number in range(14)}


def _history(store: Store, run_id: str, key: str) -> dict[int, float]:
    return {point.step: point.value for point in store.client.get_metric_history(run_id, key)}


def test_all_points_arrive_in_few_calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = store.client.log_batch
    monkeypatch.setattr(store.client, "log_batch", lambda *a, **k: (calls.append(1), original(*a, **k)))
    with runs.run(store, "star", "extractor") as run:
        tracker = RunTracker(store, run.run_id, every=float("inf"))
        for step in range(300):
            tracker.log_metrics({**STEP, "loss/cc": 1.0 / (step + 1)}, step)
        tracker.close()
    assert _history(store, tracker.run_id, "loss/cc") == {step: 1.0 / (step + 1) for step in range(300)}
    assert len(calls) == 5


def test_a_store_that_does_not_answer_costs_no_point_and_no_training(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, down = store.client.log_batch, [True]

    def flaky(*arguments: Any, **named: Any) -> Any:
        if down[0]:
            raise MlflowException("no answer")
        return original(*arguments, **named)

    monkeypatch.setattr(store.client, "log_batch", flaky)
    with runs.run(store, "star", "extractor") as tracker:
        for step in range(3):
            tracker.log_metrics({"loss/cc": float(step)}, step)
            tracker.flush()
        down[0] = False
    assert _history(store, tracker.run_id, "loss/cc") == {0: 0.0, 1: 1.0, 2: 2.0}


def test_points_that_never_could_be_written_are_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*arguments: Any, **named: Any) -> None:
        raise MlflowException("no answer")

    monkeypatch.setattr(store.client, "log_batch", down)
    with pytest.raises(PureCCError, match="2 metric points"), runs.run(store, "star", "extractor") as tracker:
        tracker.log_metrics({"a": 1.0, "b": 2.0}, 0)


def test_a_resumed_stage_has_its_whole_course_in_the_new_run(store: Store, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    rows = [{"step": step, "loss/cc": float(step)} for step in range(5)]
    history.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "loss/')
    with runs.run(store, "star", "extractor", replay=history) as tracker:
        for step in (3, 4, 5):  # it goes on from the checkpoint of step 3
            tracker.log_metrics({"loss/cc": 10.0 + step}, step)
    assert _history(store, tracker.run_id, "loss/cc") == {0: 0.0, 1: 1.0, 2: 2.0, 3: 13.0, 4: 14.0, 5: 15.0}


@pytest.mark.parametrize(("error", "status"), [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_ends_as_what_happened(store: Store, error: BaseException, status: str) -> None:
    seen: list[str] = []
    with pytest.raises(type(error)), runs.run(store, "star", "extractor", tags={"a": "b"}) as tracker:
        seen.append(tracker.run_id)
        tracker.log_metrics({"loss/cc": 1.0}, 0)
        raise error
    found = store.client.get_run(seen[0])
    assert found.info.status == status
    assert found.data.metrics == {"loss/cc": 1.0}
    assert found.data.tags["a"] == "b"


def test_child_runs_stand_below_their_parent_in_the_concepts_experiment(store: Store) -> None:
    with runs.run(store, "star", "customize") as parent:
        with runs.run(store, "star", "extractor", parent=parent.run_id) as child:
            pass
    found = store.client.get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert store.client.get_experiment(found.info.experiment_id).name == "purecc/star"


def test_the_dataset_bears_the_fingerprint_of_dvc(store: Store) -> None:
    with runs.run(store, "star", "customize") as tracker:
        runs.log_dataset(store, tracker.run_id, "star", "data/concepts/star", "0123456789abcdef.dir", "data.dvc")
    (dataset,) = store.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("star", "0123456789abcdef.dir")
    assert json.loads(dataset.dataset.source) == {"uri": "data/concepts/star"}


def test_parameters_are_flat_and_every_one_is_there(store: Store) -> None:
    nested = {"learning": {"eta": 1.5, "lora": {"rank": 4}}, **{f"key{number}": number for number in range(150)}}
    with runs.run(store, "star", "customize") as tracker:
        runs.log_parameters(store, tracker.run_id, nested)
    params = store.client.get_run(tracker.run_id).data.params
    assert (params["learning.eta"], params["learning.lora.rank"], len(params)) == ("1.5", "4", 152)


def test_flatten_keeps_lists_as_text() -> None:
    assert flatten({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "[1, 2]", "c": "None"}


def test_a_history_cut_short_by_a_crash_is_read_up_to_there(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 0, "loss/cc": 1.0, "note": "text"}\n{"step": 1, "lo')
    assert read_history(file) == [{"step": 0.0, "loss/cc": 1.0}]
