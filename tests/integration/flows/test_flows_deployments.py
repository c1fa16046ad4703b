"""Deployments on a real local server: what infra/prefect.yaml makes of them, a schedule that fires, two workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from prefect_site import Site, micro, running_site, stop, wait_until

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[3]
INTERVAL = 20


@pytest.fixture
def site(customized: Any, tmp_path: Path, prefect_home: Path) -> Iterator[Site]:
    """A customized project with a server of its own."""
    with running_site(customized, tmp_path, prefect_home) as found:
        yield found


def test_schedules_fire_and_workers_take_one_concept_each(site: Site) -> None:
    def often(deployments: dict[str, Any]) -> None:
        deployments["continual"]["schedules"] = [{"interval": INTERVAL, "active": True}]
        deployments["benchmark"]["schedules"] = []

    micro(site.project.root, often)
    site.prefect("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    deployed = {each["name"]: each for each in site.ask("/deployments/filter", {})}
    assert set(deployed) == {"customize", "continual", "retrain", "benchmark"}
    assert deployed["continual"]["schedules"][0]["schedule"]["interval"] == INTERVAL
    assert deployed["continual"]["global_concurrency_limit"]["limit"] == 1
    assert deployed["continual"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    workers = [site.spawn(f"worker-{n}", "worker", "start", "--pool", "purecc", "--limit", "1") for n in (1, 2)]
    try:
        wait_until(lambda: any(run["state_type"] == "COMPLETED" for run in site.runs("continual")), 900)
        by_schedule = [run for run in site.runs("continual") if run["auto_scheduled"]]
        assert any(run["state_type"] == "COMPLETED" for run in by_schedule)
        site.prefect("deployment", "schedule", "clear", "continual/continual", "--accept-yes")

        # another seed: the concept is to be done again, by a worker
        command = ["continual", "--workers", "--profile", "micro", "--set", "seed=3", "--json"]
        done = site.project.process(*command, **site.environment)
        assert done.code == 0, done.stderr
        assert [(row["name"], row["status"]) for row in done.json["concepts"]] == [("spotted_star", "promoted")]
        made = [run for run in site.runs("customize") if run["name"] == "spotted_star"]
        assert [run["state_type"] for run in made] == ["COMPLETED"]
        assert made[0]["deployment_id"] is not None
    finally:
        for worker in workers:
            stop(worker)


def test_the_job_of_a_cluster_is_one_that_kubernetes_takes_and_does_not_repeat() -> None:
    template = json.loads((REPOSITORY / "infra" / "work-pools" / "kubernetes.json").read_text())
    variables = template["variables"]["properties"]
    filled = {name: each["default"] for name, each in variables.items() if "default" in each}
    filled |= {
        "name": "spotted-star",
        "labels": {"app": "purecc-run"},
        "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": "PREFECT_API_URL", "value": "http://prefect-server:4200/api"}],
    }

    used: set[str] = set()

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        if isinstance(node, str):
            for name, value in filled.items():
                if f"{{{{ {name} }}}}" in node:
                    used.add(name)
                    if node == f"{{{{ {name} }}}}":
                        return value
                    node = node.replace(f"{{{{ {name} }}}}", str(value))
        return node

    configuration = fill(template["job_configuration"])
    job = configuration["job_manifest"]
    assert "{{" not in json.dumps(configuration)
    assert used == set(variables)  # no variable without an effect
    job["metadata"].pop("namespace")
    kubernetes_validate.validate({**job, "metadata": {**job["metadata"], "name": "x"}}, "1.31", strict=True)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
