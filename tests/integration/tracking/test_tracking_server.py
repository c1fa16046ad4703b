"""Tracking, registry and promotion over HTTP, on a real MLflow server whose artifacts it proxies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow_server import MlflowServer, running_mlflow_server
from safetensors.numpy import save_file

from components.errors import IntegrityError
from components.files import atomic_folder
from components.settings import Gate
from components.tracking import promotion, registry, runs
from components.tracking.gates import judge
from components.tracking.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with running_mlflow_server(tmp_path / "server") as running:
        yield running


def test_the_whole_path_of_an_adapter(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, stored = server.address, server.artifacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    root = tmp_path / "project"
    root.mkdir()
    store = open_store(root)
    adapter = tmp_path / "an adapter"
    with atomic_folder(adapter) as folder:
        save_file({"w": np.arange(7, dtype=np.uint8)}, folder / "adapter_model.safetensors")
        (folder / "provenance.json").write_text("{}")

    with runs.run(store, "star", "customize") as parent:
        runs.log_parameters(store, parent.run_id, {"learning": {"eta": 1.0}})
        runs.log_dataset(store, parent.run_id, "star", "data/concepts/star", "0.dir", "data.dvc")
        with runs.run(store, "star", "extractor", parent=parent.run_id) as tracker:
            for step in range(120):
                tracker.log_metrics({f"metric/{number}": float(step) for number in range(10)}, step)
        version = registry.register(store, "star", adapter, run_id=parent.run_id, base={}, tags={"run": parent.run_id})
        again = registry.register(store, "star", adapter, run_id=parent.run_id, base={}, tags={})
    assert again.number == version.number == 1
    assert len(store.client.get_metric_history(tracker.run_id, "metric/3")) == 120
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.0)})
    promotion.record_judgement(store, "star", 1, report, key="k", against=None)
    assert promotion.promote(store, "star", 1) is None
    assert registry.list_models(store) == {"star": {"champion": 1}}
    assert not (root / "mlruns").exists()

    (weights,) = stored.rglob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert [check.ok for check in promotion.verify(store, "star")] == [False]
    with pytest.raises(IntegrityError, match="adapter_model.safetensors"), registry.adapter_folder(store, "star", 1):
        pass
