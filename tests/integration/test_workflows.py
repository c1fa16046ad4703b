"""The workflows on GitHub: linted, and every `run:` step executed in a small project, with apt, make and gh played."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """(job, step, environment as written) of every step of a workflow."""
    content = yaml.safe_load(workflow.read_text())
    for job, body in content["jobs"].items():
        for step in body["steps"]:
            yield job, step, {**content.get("env", {}), **body.get("env", {}), **step.get("env", {})}


def commands() -> list[Any]:
    found = []
    for workflow in WORKFLOWS:
        for number, (job, step, environment) in enumerate(steps(workflow)):
            if "run" in step:
                name = step.get("name", step["run"].split()[0])
                found.append(pytest.param(step["run"], environment, id=f"{workflow.stem}-{job}-{number}-{name}"))
    return found


def test_no_finding_of_the_linter() -> None:
    linter = Path(sys.executable).with_name("zizmor")
    done = subprocess.run(
        [str(linter), "--offline", "--no-progress", "--format=json", "--strict-collection", *map(str, WORKFLOWS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_expressions_enter_a_command_by_the_environment_only(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())
    assert set(content) <= {"name", True, "permissions", "concurrency", "jobs", "env", "defaults"}  # True: the key `on`
    for body in content["jobs"].values():
        assert body["timeout-minutes"] > 0
    for _, step, environment in steps(workflow):
        command = step.get("run", "")
        assert "${{" not in command
        for name in re.findall(r"\$\{?([A-Z][A-Z_]+)", command):
            assert name in environment or name.startswith("GITHUB_"), f"{workflow.name}: ${name} is set nowhere"


def test_a_promotion_waits_for_a_person() -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "promote.yml").read_text())["jobs"]
    assert jobs["promote"]["environment"] == "production"
    assert jobs["promote"]["needs"] == "gates"


def test_who_moves_an_alias_reaches_the_server_that_holds_the_lock_across_hosts() -> None:
    moving = re.compile(r"purecc (models (promote|rollback|repair)|retrain|customize|continual)\b")
    found = [
        (step["run"], given)
        for path in WORKFLOWS
        for _, step, given in steps(path)
        if moving.search(step.get("run", ""))
    ]
    assert any("models promote" in command for command, _ in found)
    for command, given in found:
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_URI"):
            assert name in given, command


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs that write down how they were called: what reaches beyond the project."""
    folder = tmp_path_factory.mktemp("played")
    for name in ("sudo", "make", "gh"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> "$CALLS"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project whose `purecc` and `python` write down how they were called."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "profiles", root / "profiles")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    shutil.copytree(REPOSITORY / ".ci", root / ".ci")
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "purecc").write_text('#!/bin/sh\necho purecc "$@" >> "$CALLS"\n')
    (programs / "python").write_text(
        '#!/bin/sh\necho python "$@" >> "$CALLS"\nfor last; do :; done\necho table > "$last"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    return root


@pytest.mark.parametrize(("command", "environment"), commands())
def test_every_step_runs(
    command: str, environment: dict[str, str], checkout: Path, played: Path, tmp_path: Path
) -> None:
    calls, summary = tmp_path / "calls", tmp_path / "summary"
    calls.touch()
    for name in ("validation.md", "gates.md"):
        (checkout / name).write_text("table\n")
    given = {name: re.sub(r"\$\{\{.*?\}\}", "given", str(value)) for name, value in environment.items()}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
        cwd=checkout,
        env={
            "PATH": f"{played}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "CALLS": str(calls),
            "GITHUB_STEP_SUMMARY": str(summary),
            **given,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls.read_text() or summary.read_text() == "table\n"


@pytest.mark.parametrize(("command", "environment"), [c for c in commands() if ".venv/bin/" in c.values[0]])
def test_every_command_of_ours_exists_with_its_options(command: str, environment: dict[str, str]) -> None:
    """Asked for its help, a command refuses unknown subcommands; its options are looked for in that help."""
    words = command.split(".venv/bin/")[1].split()
    program = ["-m", "flows.cli"] if words[0] == "purecc" else words[1:3]
    rest = words[1:] if words[0] == "purecc" else words[3:]
    names = []
    for word in rest:
        if word.startswith(("-", '"')):
            break
        names.append(word)
    done = subprocess.run(
        [sys.executable, *program, *names, "--help"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in rest if word.startswith("--")):
        assert option in done.stdout, f"{' '.join(names)} has no {option}"
