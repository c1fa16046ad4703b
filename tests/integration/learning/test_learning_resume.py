"""Killed with SIGKILL at the worst moments, a training ends bit-identical to an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.learning import NullTracker, train_extractor, train_pure
from components.learning.history import read_history
from components.settings import Profile

TIMING = {"speed/steps_per_second", "memory/peak_mib"}
SETTINGS = [
    "learning.pure.steps=12",
    "learning.checkpoint_every=5",
    "learning.gradient_accumulation=2",
    "learning.ema_decay=0.9",
    "learning.pure.warmup_steps=4",
]

# Each child is one life of the training: it dies by its own hand at a place where a crash hurts, the last one lives.
PROGRAM = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from components.backbones import sd3
    from components.concepts.concept import load_concept
    from components.learning import NullTracker, checkpoints, history, loop, train_pure
    from components.settings import load_profile

    concept_folder, extractor, work, *overrides = sys.argv[1:]

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def after(function, when):
        def wrapped(*arguments, **named):
            result = function(*arguments, **named)
            if when(*arguments):
                die()
            return result
        return wrapped

    def in_a_step():  # two steps after checkpoint 5, their metrics still in memory
        loop._Loop._step = after(loop._Loop._step, lambda self: self.step == 7)

    def in_a_checkpoint():  # its tensors are written, its state is not
        checkpoints.save_file = after(checkpoints.save_file, lambda tensors, path: "00000010" in str(path))

    def between_checkpoints():  # the new one is there, the old one is not yet removed
        checkpoints.shutil.rmtree = after(lambda *a, **k: None, lambda path, *_: path.name == "00000005")

    def in_the_history():  # half a line
        def torn(self, extra):
            with self._file.open("a") as stream:
                stream.write('{"step": 11, "loss/to')
            die()
        plain = history.History.flush
        history.History.flush = lambda self, extra: (
            torn(self, extra) if self._pending[-1][0] == 12 else plain(self, extra)
        )

    def in_the_adapter():  # some of its files are written
        sd3.SD3Backbone.save_adapter = after(sd3.SD3Backbone.save_adapter, lambda *_: True)

    def never():
        pass

    codes = []
    for life in (in_a_step, in_a_checkpoint, between_checkpoints, in_the_history, in_the_adapter, never):
        child = os.fork()
        if child == 0:
            life()
            profile = load_profile("tiny", overrides)
            backbone = sd3.SD3Backbone.load(profile.base)
            concept = load_concept(Path(concept_folder))
            train_pure(backbone, concept, profile, Path(extractor), Path(work), NullTracker())
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(codes)
    """
)


@pytest.mark.slow
def test_killed_at_the_worst_moments(
    backbone: SD3Backbone,
    concept: Concept,
    profile: Callable[..., Profile],
    repository: Path,
    tmp_path: Path,
) -> None:
    settings = profile(*SETTINGS)
    extractor = train_extractor(backbone, concept, settings, tmp_path / "extractor", NullTracker())
    unbroken = train_pure(backbone, concept, settings, extractor, tmp_path / "unbroken", NullTracker())

    work = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(concept.folder), str(extractor), str(work), *SETTINGS],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * 5 + [0], done.stderr

    rows = [read_history(folder / "history.jsonl") for folder in (tmp_path / "unbroken", work)]
    traces = [[{key: row[key] for key in row.keys() - TIMING} for row in run] for run in rows]
    assert [row["step"] for row in traces[1]] == list(range(1, 13))
    assert traces[0] == traces[1]
    assert {f.name: f.read_bytes() for f in unbroken.iterdir()} == {
        f.name: f.read_bytes() for f in (work / "adapter").iterdir()
    }
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["00000012"]
