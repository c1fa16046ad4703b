"""One concept trained by two processes (torchrun, gloo): what one process comes to with the same whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.files import verify_manifest
from components.learning.pure import train_pure
from components.learning.tracker import NullTracker
from components.settings import Profile

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[3]
STEPS = 5

PROGRAM = """
import json, os, sys
from pathlib import Path
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import load_concept
from components.learning.pure import train_pure
from components.settings import Profile

class Counting:
    calls = 0
    def log_metrics(self, metrics, step): Counting.calls += 1
    def log_image(self, name, path): Counting.calls += 1
    def flush(self): pass

profile = Profile.model_validate_json(Path(sys.argv[1]).read_text())
work = Path(sys.argv[3])
backbone = SD3Backbone.load(profile.base)
train_pure(backbone, load_concept(Path(sys.argv[2])), profile, None, work, Counting())
(work / f"calls-{os.environ['RANK']}.json").write_text(json.dumps(Counting.calls))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_learn_what_one_does_and_one_of_them_writes(
    concept: Concept, profile: Callable[..., Profile], backbone: SD3Backbone, tmp_path: Path
) -> None:
    common = ("learning.method=lora", f"learning.pure.steps={STEPS}", "learning.gradient_accumulation=2")
    settings = profile(*common, "learning.batch_size=4")
    alone = train_pure(backbone, concept, settings, None, tmp_path / "one", NullTracker())

    (tmp_path / "profile.json").write_text(settings.model_dump_json())
    (tmp_path / "program.py").write_text(PROGRAM)
    work = tmp_path / "two"
    arguments = [str(tmp_path / "program.py"), str(tmp_path / "profile.json"), str(concept.folder), str(work)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    verify_manifest(work / "adapter")
    expected = load_file(alone / "adapter_model.safetensors")
    found = load_file(work / "adapter" / "adapter_model.safetensors")
    assert expected.keys() == found.keys()
    moved = 0.0
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        moved = max(moved, float(value.abs().max()) if ".lora_B." in name else 0.0)
    assert moved > 1e-3  # something was learned, so that equality says something
    calls = [json.loads((work / f"calls-{rank}.json").read_text()) for rank in (0, 1)]
    assert calls == [STEPS, 0]
    history = [json.loads(line)["step"] for line in (work / "history.jsonl").read_text().splitlines()]
    assert history == list(range(1, STEPS + 1))
