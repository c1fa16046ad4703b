"""`make bench-gpu` on a model of a few thousand weights: every table is filled, and its operations are really done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sd35

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# In a process of its own: the modules of the benchmarks have short names.
COUNT = """
import json, sys
sys.path[:0] = sys.argv[1:4]
import gpu, torch, training
from architecture import CASES, SMALL, RandomBench, create, profile_of, tera_flop
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from pathlib import Path

folder = Path(sys.argv[4])
profile = profile_of(folder, SMALL, 64, 2)
create(folder, SMALL, profile.base)
bench = RandomBench(folder, profile)
cases, found = training.ours(bench), {}
for name in CASES:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cases[name]()
    found[name] = [counter.get_total_flops(), round(1e12 * tera_flop(bench, name))]
print(json.dumps(found))
"""


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_cell_is_measured_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--miniature", "--resolutions", "64", "--batches", "2", "--rounds", "1", "--out", str(out)]
    printed = run(str(BENCHMARKS / "gpu.py"), *options)
    written: dict[str, Any] = json.loads(out.read_text())
    assert written["miniature"]
    assert {(row["variant"], row["case"]) for row in written["training"]} == {
        (variant, case)
        for variant in ("none", "checkpointing", "activations on the host", "int8 base", "compiled")
        for case in (
            "plain LoRA",
            "stage 1 (extractor)",
            *(f"stage 2, {m}" for m in ("frozen", "detached", "trainable", "frozen, with DOP")),
        )
    }
    rows = [row for row in written["training"] if row["variant"] not in ("int8 base", "compiled")]
    for row in rows:
        assert row["milliseconds"] > 0
        assert row["note"] == ""
        assert row["peak_gb"] is None, "there is no allocator to ask on a CPU"
        flop_per_second = 1e15 * row["tera_flop"] / row["milliseconds"]
        assert row["utilisation"] == pytest.approx(flop_per_second / (1e12 * written["tera_flop_per_second"]))
    assert all(row["images_per_second"] > 0 for row in written["sampling"])
    assert sum(written["shares"].values()) == pytest.approx(1)
    assert {"matrix products", "normalisation and sums"} <= set(written["shares"])
    assert [target["found"] for target in written["targets"]] == [None] * 5, "the targets are those of a GPU at 1024 px"
    assert "aten::" in out.with_suffix(".profile.txt").read_text()
    assert written["formula"] in printed
    assert "| open |" in printed


@pytest.mark.slow
def test_a_step_does_the_operations_that_are_stated(tmp_path: Path) -> None:
    """Against torch's counter, which sees every matrix product of the step."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), str(BENCHMARKS.parents[1])]
    counted = json.loads(run("-c", COUNT, *paths, str(tmp_path / "base")).splitlines()[-1])
    assert set(counted) == {
        "plain LoRA",
        "stage 1 (extractor)",
        "stage 2, frozen",
        "stage 2, detached",
        "stage 2, trainable",
        "stage 2, frozen, with DOP",
    }
    for name, (done, stated) in counted.items():
        assert done == stated, name


def test_the_architecture_is_that_of_the_published_model() -> None:
    """Its number of weights, without making one."""
    import torch
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**sd35.TRANSFORMER)
        autoencoder = AutoencoderKL(**sd35.AUTOENCODER)
    assert sum(value.numel() for value in transformer.parameters()) == 2_243_171_520
    assert sum(value.numel() for value in autoencoder.parameters()) == 83_819_683
