"""Four concepts on two workers of one thread each, against one worker: the ratio of wall-clock.

Printed, not judged. Prefect and MLflow are on SQLite here, which two writers share badly: with PostgreSQL the ratio is
the better one.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from prefect_site import micro, running_site, stop
from small_project import MicroProject, build

CONCEPTS = {"spotted_star": "star", "ball": "circle", "wash": "style", "second_star": "star"}


def test_four_concepts_on_two_workers(micro_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "template"
    template.mkdir()
    build(template, micro_family, CONCEPTS)
    seconds = {}
    for count in (1, 2):
        root = tmp_path / f"workers-{count}"
        shutil.copytree(template, root, symlinks=True)
        folder = tmp_path / f"logs-{count}"
        folder.mkdir()
        with running_site(MicroProject(root), folder) as site:
            micro(root, lambda each: each["continual"].pop("schedules"))
            site.prefect("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            workers = [
                site.spawn(f"worker-{number}", "worker", "start", "--pool", "purecc", "--limit", "1")
                for number in range(count)
            ]
            try:
                begun = time.monotonic()
                done = site.project.process(
                    "continual", "--workers", "--profile", "micro", "--json", timeout=3000, **site.environment
                )
                seconds[count] = time.monotonic() - begun
                assert done.code == 0, done.stderr
            finally:
                for worker in workers:
                    stop(worker)
    with capsys.disabled():
        print(f"\n{len(CONCEPTS)} concepts: 1 worker {seconds[1]:.0f} s, 2 workers {seconds[2]:.0f} s, ", end="")
        print(f"ratio {seconds[1] / seconds[2]:.2f}")
