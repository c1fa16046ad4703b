"""A backup of the running servers, brought back into fresh ones: the champion is there, whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from servers import compose
from servers.compose import Stack

from components.files import atomic_folder, verify_manifest
from components.settings import Gate
from components.tracking import promotion, registry, runs
from components.tracking.gates import judge
from components.tracking.store import Store, open_store

pytestmark = [pytest.mark.slow, pytest.mark.long]  # every server of the file, twice
CONCEPT = "saved_star"
ODD_NAME = "a name with spaces & 100%.txt"


def backup(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `docker compose run backup` runs."""
    program = next(part for part in stack.command("backup") if part.endswith("backup.py"))
    return stack.run("backup", *(("python", program, *arguments) if arguments else ()))


def store_of(stack: Stack, folder: Path, patch: pytest.MonkeyPatch) -> Store:
    for name, value in stack.client_environment().items():
        patch.setenv(name, value)
    folder.mkdir()
    return open_store(folder)


def test_a_champion_survives_the_loss_of_every_server(
    servers: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(servers, tmp_path / "before", monkeypatch)
    adapter = tmp_path / "adapter"
    with atomic_folder(adapter) as folder:
        save_file({"w": np.arange(7, dtype=np.uint8)}, folder / "adapter_model.safetensors")
        (folder / "provenance.json").write_text("{}")
    with runs.run(store, CONCEPT, "customize") as run:
        runs.log_final(store, run.run_id, {"fidelity/clip_i": 0.5})
        store.client.log_text(run.run_id, "kept", ODD_NAME)
        registry.register(store, CONCEPT, adapter, run_id=run.run_id, base={}, tags={"run": run.run_id})
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.0)})
    promotion.record_judgement(store, CONCEPT, 1, report, key="k", against=None)
    promotion.promote(store, CONCEPT, 1)

    saved = backup(servers)
    assert saved.returncode == 0, saved.stderr
    (folder,) = servers.backups.iterdir()
    assert json.loads(saved.stdout)["backup"] == str(folder)
    # password hashes are in it: for its owner alone
    assert [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077] == []
    assert backup(servers, "restore", str(folder)).returncode == 1  # never over what is there
    with compose.running(tmp_path / "fresh") as fresh:
        fresh.prepare()
        for file in servers.secrets.iterdir():  # a backup is of use with the passwords that it was made with
            (fresh.secrets / file.name).unlink()
            shutil.copy(file, fresh.secrets)
        fresh.start("postgres", "bucket")
        fresh.complete("bucket")

        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged)
        dump = damaged / "mlflow.dump"
        dump.write_bytes(dump.read_bytes()[:-1])
        refused = backup(fresh, "restore", str(damaged))
        assert refused.returncode == 1
        assert "mlflow.dump" in refused.stderr

        restored = backup(fresh, "restore", str(folder))
        assert restored.returncode == 0, restored.stderr
        fresh.start("mlflow-user")
        fresh.complete("mlflow-user")
        again = store_of(fresh, tmp_path / "after", monkeypatch)
        assert again.uri != store.uri
        assert registry.aliases(again, CONCEPT) == {"champion": 1}
        assert [check.ok for check in promotion.verify(again, CONCEPT)] == [True]
        with registry.adapter_folder(again, CONCEPT, 1) as found:
            verify_manifest(found)
        assert Path(again.client.download_artifacts(run.run_id, ODD_NAME, str(tmp_path))).read_text() == "kept"
        assert again.client.get_run(run.run_id).data.metrics["fidelity/clip_i"] == 0.5
        tables = "SELECT count(*) FROM flow_run"
        assert fresh.postgres.psql(tables, database="prefect") == servers.postgres.psql(tables, database="prefect")
