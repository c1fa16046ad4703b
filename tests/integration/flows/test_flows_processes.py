"""A flow that `torchrun` starts as two processes: one tracks and writes, and the result is that of a single process."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.tracking import registry
from components.tracking.store import Store, open_store

pytestmark = [pytest.mark.slow, pytest.mark.long]


def torchrun(project: Any, count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of `purecc` in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={port}", "-m", "flows.cli"]
    return subprocess.run(
        [*launcher, *arguments],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def runs_of(store: Store) -> list[tuple[str, str]]:
    """(name, status) of every MLflow run of the concept."""
    experiment = store.client.get_experiment_by_name("purecc/spotted_star")
    found = store.client.search_runs([experiment.experiment_id])
    return sorted((run.info.run_name, run.info.status) for run in found)


def weights(store: Store) -> dict[str, torch.Tensor]:
    champion = registry.by_alias(store, "spotted_star")
    assert champion is not None
    with registry.adapter_folder(store, "spotted_star", champion.number) as folder:
        return load_file(folder / "adapter_model.safetensors")


def test_two_processes_come_to_one_champion_that_is_the_one_of_a_single_process(
    customized: Any, micro_template: Path, tmp_path: Path
) -> None:
    root = tmp_path / "two"
    shutil.copytree(micro_template, root, symlinks=True)
    project = type(customized)(root)
    done = torchrun(project, 2, "customize", "spotted_star", "--profile", "micro", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "promoted"  # one document: one process speaks
    assert project.servers() == []

    alone, together = open_store(customized.root), open_store(root)
    assert runs_of(together) == runs_of(alone)
    assert [version.number for version in registry.versions(together, "spotted_star")] == [1]
    expected, found = weights(alone), weights(together)
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)
    assert max(float(value.abs().max()) for name, value in found.items() if ".lora_B." in name) > 1e-3

    again = project.process("customize", "spotted_star", "--profile", "micro", "--json")
    assert again.json["status"] == "unchanged"  # what it depends on does not depend on the number of processes


def test_a_batch_that_cannot_be_spread_is_refused(customized: Any) -> None:
    arguments = ("customize", "spotted_star", "--profile", "micro", "--set", "learning.batch_size=3", "--json")
    done = torchrun(customized, 2, *arguments)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["field"] == "learning.batch_size"
