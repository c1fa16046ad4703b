"""A whole small project: untrained micro models, concepts under DVC, a profile of a few steps; and its command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from untrained_evaluators import save_clip, save_dinov2, save_segformer

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILE: dict[str, Any] = {
    "name": "micro",
    "seed": 0,
    "base": {
        "path": "infra/models/base",
        "resolution": 64,
        "max_sequence_length": 20,
        "device": "cpu",
        "placeholder": "sks",
    },
    "concepts": {"class_words": ["star", "circle"]},
    "learning": {
        "method": "purecc",
        "lora": {"rank": 2, "alpha": 2.0},
        "extractor": {"trains": "embeddings", "steps": 4, "embedding_learning_rate": 0.05},
        "pure": {"steps": 6, "lora_learning_rate": 0.01, "embedding_learning_rate": 0.01},
        "batch_size": 2,
        "checkpoint_every": 2,
    },
    "evaluation": {
        "prompts": "profiles/prompts/micro.yaml",
        "seeds": 1,
        "sampling": {"steps": 2, "guidance_scale": 4.0, "batch_size": 4},
        "evaluators": {f"{name}": f"infra/models/{name}" for name in ("clip", "dino", "segmenter")},
    },
    "gates": {"fidelity/clip_i": {"minimum": -1.0}},
    # a fresh process for every promotion would cost minutes; test_flows_promotion.py does it once
    "promotion": {"servability": False},
}
PROMPTS = {
    "name": "micro",
    "categories": {
        "background": [{"template": "a {concept} on the left, snow background"}],
        "style": [{"template": "a star{style}"}],
        "without": [{"template": "a red circle on the right, grass background"}],
    },
}


def build(root: Path, family: Path, concepts: dict[str, str] | None = None) -> None:
    """Make the project in the empty folder `root`.

    Args:
        concepts: name -> class word; `style` makes a style.
    """
    from components.concepts import versions
    from components.concepts.store import add_concept
    from components.settings import ConceptSettings

    concepts = concepts or {"spotted_star": "star"}
    (root / "profiles" / "prompts").mkdir(parents=True)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / ".gitignore").write_text("/.purecc/\n/mlruns/\n/data/\n")
    (root / "profiles" / "micro.yaml").write_text(yaml.safe_dump(PROFILE))
    (root / "profiles" / "prompts" / "micro.yaml").write_text(yaml.safe_dump(PROMPTS))
    shutil.copytree(family, root / "infra" / "models" / "base")
    for name, save in (("clip", save_clip), ("dino", save_dinov2), ("segmenter", save_segformer)):
        save(root / "infra" / "models" / name)
    photos, dwarfs = root / ".photos", root / ".dwarfs"
    photos.mkdir()
    dwarfs.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
        Image.fromarray(pixels[:8, :8]).save(dwarfs / f"{number}.png")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    versions.init(root)
    for name, class_word in concepts.items():
        style = class_word == "style"
        add_concept(
            root / "data" / "concepts",
            name,
            class_word=class_word,
            kind="style" if style else "instance",
            images=sorted((dwarfs if name == "dwarf" else photos).iterdir()),
            settings=ConceptSettings(),
            texts=["a star, in [V] style" if style else f"a [V] {class_word} on the left, brick background"] * 3,
        )
    shutil.rmtree(photos)
    shutil.rmtree(dwarfs)
    versions.add(root)
    versions.push(root)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "start"], check=True)


@dataclass(frozen=True)
class Finished:
    """What a `purecc` left."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class MicroProject:
    """A project folder and its command line."""

    root: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        own = {"PURECC_HOME": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        return {**kept, **own, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", **more}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.root,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def purecc(self, *arguments: str) -> Finished:
        """Run a command in this process, against `prefect_api`: the heavy imports are paid once."""
        from typer.testing import CliRunner

        from flows.cli import app

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PURECC_HOME", str(self.root))
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.chdir(self.root)
            result = CliRunner().invoke(app, list(arguments))
        return Finished(result.exit_code, result.stdout, result.stderr)

    def process(self, *arguments: str, timeout: float = 1500, **more: str) -> Finished:
        """Run a command in a process of its own, with an embedded Prefect server of its own."""
        process = self.start(*arguments, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return Finished(process.returncode, out, err)

    def processes(self) -> list[int]:
        """Processes that were started for this project."""
        found = []
        for process in psutil.process_iter(["pid"]):
            try:
                if process.environ().get("PURECC_HOME") == str(self.root) and process.status() != "zombie":
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def servers(self) -> list[int]:
        """Those of them that are a Prefect server."""
        return [pid for pid in self.processes() if "prefect" in _command(pid)]

    def change_profile(self, change: Callable[[dict[str, Any]], None]) -> None:
        file = self.root / "profiles" / "micro.yaml"
        content = yaml.safe_load(file.read_text())
        change(content)
        file.write_text(yaml.safe_dump(content))


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
