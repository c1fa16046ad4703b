"""Every deployment of infra/prefect.yaml names a flow that is there, with parameters that it takes."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOYMENTS = yaml.safe_load((REPOSITORY / "infra" / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_the_parameters_of_a_deployment_are_those_of_its_flow(deployment: dict[str, Any]) -> None:
    file, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    parameters = deployment.get("parameters", {})
    if deployment.get("schedules"):
        flow.validate_parameters(parameters)  # nobody adds the rest when a schedule fires
    else:
        assert set(parameters) <= set(flow.parameters.properties)


def test_the_plan_of_the_scheduled_benchmark_is_one() -> None:
    from components.benchmark.plan import Plan

    (plan,) = (item["parameters"]["plan"] for item in DEPLOYMENTS if item["name"] == "benchmark")
    assert list(Plan.model_validate(plan).cells())


def test_what_is_scheduled_fires_once_a_week() -> None:
    from prefect.server.schemas.schedules import CronSchedule

    crons = {item["name"]: [each["cron"] for each in item.get("schedules", [])] for item in DEPLOYMENTS}
    assert {name for name, found in crons.items() if found} == {"continual", "benchmark"}
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for found in filter(None, crons.values()):
        first, second = asyncio.run(CronSchedule(cron=found[0]).get_dates(2, start))
        assert second - first == dt.timedelta(weeks=1)
