"""Runs over many concepts on untrained micro models: the real components, all of them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.concepts import versions
from components.tracking import bundles, registry
from components.tracking.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
MICRO = ("--profile", "micro", "--json")


def plan_of(project: Any, *more: str) -> dict[str, str]:
    done = project.purecc("plan", *MICRO, *more)
    assert done.code == 0, done.stderr
    assert all(set(row) == {"name", "action", "reason"} for row in done.json)
    return {row["name"]: row["action"] for row in done.json}


def commit(root: Path, message: str) -> None:
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", message], check=True)


def change_text(root: Path, name: str, old: str, new: str) -> None:
    file = root / "data" / "concepts" / name / "metadata.jsonl"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    versions.add(root)
    versions.push(root)
    commit(root, f"{name} says {new}")


def test_one_failure_touches_no_other_and_each_is_named(
    several_template: tuple[Path, dict[str, Any]], several: Any
) -> None:
    said = several_template[1]
    assert (said["code"], said["state"]) == (1, "completed with failures")
    results = {row["name"]: row for row in said["concepts"]}
    assert {name: row["status"] for name, row in results.items()} == {
        "ball": "promoted",
        "dwarf": "failed",
        "spotted_star": "promoted",
        "wash": "promoted",
    }
    assert "8" in results["dwarf"]["reason"]  # pixels
    assert "dwarf" in said["message"]
    assert all(row["seconds"] > 0 for row in results.values())

    store = open_store(several.root)
    (found,) = registry.versions(store, bundles.NAME)
    assert found.aliases == ("champion",)
    pins = {pin["name"]: pin for pin in json.loads(found.tags["bundle/pins"])}
    assert set(pins) == {"ball", "spotted_star", "wash"}
    for name, pin in pins.items():
        champion = registry.by_alias(store, name)
        assert champion is not None
        assert (pin["version"], pin["adapter"]) == (champion.number, champion.tags["adapter/digest"])

    presences = said["checks"]["presences"]
    groups = {tuple(each["group"]) for each in presences}
    assert len(groups) == 4  # three pairs and all
    joint = {tuple(each["group"]): each["joint"] for each in presences if len(each["group"]) == 2}
    assert all(value is not None for value in joint.values())  # an instance in a style included
    run = store.client.get_run(said["run"])
    assert run.data.tags["concept/dwarf"] == "failed"
    assert {item.path for item in store.client.list_artifacts(said["run"])} >= {"plan.json", "summary.json", "bundle"}


def test_an_unchanged_world_has_nothing_to_do_and_needs_nothing_heavy_to_know(several: Any) -> None:
    assert plan_of(several) == {"ball": "reuse", "dwarf": "train", "spotted_star": "reuse", "wash": "reuse"}
    quarantine = ("--set", "continual.quarantine_after=1")
    assert plan_of(several, *quarantine)["dwarf"] == "quarantined"
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'prefect', 'great_expectations', 'diffusers')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "from flows.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "continual", *MICRO, *quarantine],
        cwd=several.root,
        env=several.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    assert {row["name"]: row["status"] for row in said["concepts"]}["dwarf"] == "quarantined"
    assert said["bundle"]["version"] == 1
    assert done.stderr.splitlines()[-1] == "[]"
    change_text(several.root, "dwarf", "brick", "snow")  # out of quarantine
    assert plan_of(several, *quarantine)["dwarf"] == "train"


def test_a_commit_that_changes_one_concept_retrains_that_one(several: Any, tmp_path: Path) -> None:
    change_text(several.root, "ball", "brick", "snow")
    done = several.purecc("retrain", "--since", "HEAD~1", *MICRO)
    assert done.code == 0, done.stderr
    assert [(row["name"], row["status"]) for row in done.json["concepts"]] == [("ball", "promoted")]
    store = open_store(several.root)
    assert registry.aliases(store, "ball")["champion"] == 2
    assert registry.aliases(store, "wash")["champion"] == 1
    again = several.purecc("retrain", "--since", "HEAD~1", *MICRO)
    assert [(row["name"], row["status"]) for row in again.json["concepts"]] == [("ball", "reused")]
    assert several.purecc("retrain", "--since", "HEAD", *MICRO).json["concepts"] == []

    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=1", several.root.as_uri(), str(shallow)], check=True)
    assert set(plan_of(type(several)(shallow), "--since", "HEAD~1")) == {"ball"}
    several.change_profile(lambda profile: profile["learning"].update(eta=2.0))
    assert set(plan_of(several, "--since", "HEAD")) == {"ball", "dwarf", "spotted_star", "wash"}


def test_a_concept_whose_data_is_gone_is_retired_and_comes_back(several: Any) -> None:
    shutil.move(several.root / "data" / "concepts" / "ball", several.root / ".ball")
    versions.add(several.root, removed=["ball"])
    commit(several.root, "no ball")
    assert plan_of(several)["ball"] == "retire"
    done = several.purecc("continual", "ball", *MICRO)
    assert done.code == 0, done.stderr
    store = open_store(several.root)
    assert "champion" not in registry.aliases(store, "ball")
    assert len(registry.versions(store, "ball")) == 1
    assert "ball" not in plan_of(several)
    shutil.move(several.root / ".ball", several.root / "data" / "concepts" / "ball")
    versions.add(several.root)
    done = several.purecc("continual", "ball", *MICRO)
    assert [(row["name"], row["status"], row["version"]) for row in done.json["concepts"]] == [("ball", "promoted", 1)]


def test_the_tables_of_the_workflows(several: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.ci import app

    change_text(several.root, "dwarf", "brick", "snow")
    change_text(several.root, "ball", "brick", "snow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURECC_HOME", str(several.root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        table, gates = tmp_path / "validation.md", tmp_path / "gates.md"
        judged = ["validation", "--profile", "micro", "--out", str(table), "--since"]
        assert CliRunner().invoke(app, [*judged, "HEAD~1"]).exit_code == 0
        assert "| ball | modified | valid |" in table.read_text()
        assert "dwarf" not in table.read_text()
        assert CliRunner().invoke(app, [*judged, "HEAD~2"]).exit_code == 1  # its pictures are too small
        assert "| dwarf | modified | not valid |" in table.read_text()
        assert CliRunner().invoke(app, ["gates", "ball", "1", "--out", str(gates)]).exit_code == 0
        assert "fidelity/clip&#95;i" in gates.read_text()


def test_data_that_is_wrong_is_a_line_of_the_plan(several: Any) -> None:
    (several.root / "data" / "concepts" / "ball" / "concept.yaml").write_text("name: [")
    rows = {row["name"]: row for row in several.purecc("plan", *MICRO).json}
    assert rows["ball"]["action"] == "quarantined"
    assert "concept.yaml" in rows["ball"]["reason"]
    assert rows["wash"]["action"] == "reuse"
    assert several.purecc("plan", "nothing", *MICRO).code == 2


def test_a_cap_begins_nothing_new_and_the_next_run_goes_on(several: Any) -> None:
    seed = ("--set", "seed=5")
    done = several.purecc("continual", "ball", "wash", *MICRO, *seed, "--set", "continual.wall_clock_seconds=0.001")
    assert {row["name"]: row["status"] for row in done.json["concepts"]} == {"ball": "promoted", "wash": "left"}
    assert done.json["bundle"] is not None  # what was begun is finished
    plan = several.purecc("plan", "ball", "wash", *MICRO, *seed).json
    assert {row["name"]: row["action"] for row in plan} == {"ball": "reuse", "wash": "train"}


def test_concepts_learned_one_after_the_other(several: Any) -> None:
    settings = ("--set", "continual.maximum_forgetting=0.9", "--set", "continual.earlier=stack")
    done = several.purecc("continual", "wash", "spotted_star", "--mode", "sequential", *MICRO, *settings)
    assert done.code == 0, done.stderr
    said = done.json
    statuses = {row["name"]: row["status"] for row in said["concepts"]}
    assert statuses == {"wash": "reused", "spotted_star": "learned"}  # the first stands on the pristine base
    rows = list(csv.reader((Path(said["report"]).parent / "matrix.csv").open()))
    assert rows[0] == ["after", "wash", "spotted_star"]
    matrix = [[float(value) for value in row[1:]] for row in rows[1:]]
    assert said["checks"]["metrics"]["continual/accuracy"] == pytest.approx(sum(matrix[1]) / 2)
    assert said["checks"]["metrics"]["continual/forgetting_max"] == pytest.approx(matrix[0][0] - matrix[1][0])
    assert "<svg" in Path(said["report"]).read_text()
    store = open_store(several.root)
    found = registry.version(store, bundles.NAME, said["bundle"]["version"])
    assert found.status == "passed"
    assert registry.aliases(store, "spotted_star")["champion"] == 1  # what stands for itself is untouched
    with bundles.bundle_folder(store, found.number) as folder:
        provenance = json.loads((folder / "adapters" / "spotted_star" / "provenance.json").read_text())
        first = json.loads((folder / "bundle.json").read_text())["concepts"][0]
        assert provenance["parents"][0] == first["adapter"]
    again = several.purecc("continual", "wash", "spotted_star", "--mode", "sequential", *MICRO, *settings)
    assert {row["status"] for row in again.json["concepts"]} == {"reused"}
    assert again.json["bundle"]["version"] == said["bundle"]["version"]
    strict = several.purecc(
        "continual", "wash", "spotted_star", "--mode", "sequential", *MICRO, "--set", "continual.earlier=stack",
        "--set", "continual.metric=none",  "--set", "continual.maximum_forgetting=0.9",
    )  # fmt: skip
    assert strict.code == 1
    assert "forgetting is nan" in strict.json["message"]
