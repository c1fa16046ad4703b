"""What promotion needs of a Prefect server: a lock that holds across hosts, and a person's consent."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.tracking import promotion, registry
from components.tracking.locks import LockNotTaken
from components.tracking.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def test_one_holder_at_a_time_and_the_next_one_after_it() -> None:
    from flows.locks import prefect_lock

    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with prefect_lock("registry-star", 300):
            held.set()
            let_go.wait(300)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(300)
    with pytest.raises(LockNotTaken, match="purecc-registry-star"), prefect_lock("registry-star", 3):
        pytest.fail("two holders")
    with prefect_lock("registry-heart", 300):  # another concept is free
        pass
    let_go.set()
    holder.join()
    with prefect_lock("registry-star", 300):
        pass


def test_of_many_who_are_the_first_to_ask_one_holds_at_a_time() -> None:
    """None of them finds the limit there, and all want to make it."""
    from flows.locks import prefect_lock

    together, inside, most, done = threading.Barrier(6), 0, 0, []

    def hold() -> None:
        nonlocal inside, most
        together.wait(300)
        with prefect_lock("registry-new", 300):
            inside += 1
            most = max(most, inside)
            time.sleep(0.2)  # long enough for another one to come in, were it let
            inside -= 1
        done.append(1)

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), most) == (6, 1)


def test_a_limit_that_was_switched_off_holds_again() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    from flows.locks import prefect_lock

    with prefect_lock("registry-off", 300):
        pass
    with get_client(sync_client=True) as client:  # as a person does on Prefect's page
        client.update_global_concurrency_limit(
            "purecc-registry-off", GlobalConcurrencyLimitUpdate(active=False, limit=5, slot_decay_per_second=3)
        )
    with prefect_lock("registry-off", 300):
        time.sleep(1)  # slots that decay would be free by now
        with pytest.raises(LockNotTaken), prefect_lock("registry-off", 3):
            pytest.fail("two holders")


def test_a_fresh_process_serves_what_is_promoted(customized: Any) -> None:
    settings = ("--set", "seed=1", "--set", "promotion.servability=true", "--json")
    done = customized.purecc("customize", "spotted_star", "--profile", "micro", *settings)
    assert (done.code, done.json["status"], done.json["champion"]) == (0, "promoted", 2), done.stderr
    store = open_store(customized.root)
    facts = json.loads(registry.version(store, "spotted_star", 2).tags["servability/facts"])
    assert facts["difference"] < 0.5 < facts["effect"]
    (check,) = promotion.verify(store, "spotted_star", 2)
    assert "servability" in check.passed
    references = [json.loads(file.read_text()) for file in customized.root.glob("mlruns/artifacts/**/base.json")]
    assert len(references) == 2
    assert all(each["settings"]["device"] == "cpu" and "threads" not in each["settings"] for each in references)
    # what a fresh process cannot serve is refused, and the champion stays
    asked = "promotion={servability: true, minimum_effect: 255.0}"
    done = customized.purecc(
        "customize", "spotted_star", "--profile", "micro", "--set", "seed=2", "--set", asked, "--json"
    )
    assert (done.code, done.json["status"], done.json["champion"]) == (1, "refused", 2), done.stderr
    assert "changes the base's picture by" in done.json["reason"]


def answer_when_paused(answer: dict[str, Any], process: Any) -> dict[str, str]:
    """Answer the paused flow run as the page does; gives the artifacts that a person finds there, key -> content."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
    from prefect.flow_runs import resume_flow_run

    paused = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    deadline = time.monotonic() + 500
    with get_client(sync_client=True) as client:
        while not (found := client.read_flow_runs(flow_run_filter=paused)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(1)
        its = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[found[0].id]))
        shown = {str(each.key): str(each.data) for each in client.read_artifacts(artifact_filter=its)}
        for data in shown.values():
            for link in re.findall(r"file://([^)\s]+)", data):
                assert Path(link).read_text().lstrip().lower().startswith("<!doctype html>")
    resume_flow_run(found[0].id, run_input=answer)
    return shown


@pytest.mark.parametrize("approve", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_person_is_asked_before_the_alias_moves(customized: Any, approve: bool) -> None:
    from prefect.settings import PREFECT_API_URL

    settings = ("--set", "seed=1", "--set", "promotion.approval=true", "--json")
    process = customized.start(
        "customize", "spotted_star", "--profile", "micro", *settings, PREFECT_API_URL=str(PREFECT_API_URL.value())
    )
    try:
        shown = answer_when_paused({"approve": approve, "name": "Ada", "note": "seen"}, process)
        out, err = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    said = json.loads(out)
    store = open_store(customized.root)
    version = registry.version(store, "spotted_star", 2)
    assert version.tags["approval/by"] == "Ada"
    # what was there while it was paused: the gates, and a link to the report, which is kept in MLflow as well
    assert "fidelity/clip_i" in shown["gates-spotted-star"]
    report = f"{version.tags['run']}.html"
    assert f"{report})" in shown["report-spotted-star"]
    assert [each.path for each in store.client.list_artifacts(version.tags["run"], "report")] == [f"report/{report}"]
    if approve:
        assert (process.returncode, said["status"], said["champion"]) == (0, "promoted", 2), err
    else:
        assert (process.returncode, said["status"], said["champion"]) == (1, "refused", 1), err
        assert "Ada did not agree: seen" in said["reason"]


def test_without_a_server_nobody_could_answer(customized: Any) -> None:
    settings = ("--set", "seed=1", "--set", "promotion.approval=true", "--json")
    done = customized.purecc("customize", "spotted_star", "--profile", "micro", *settings)
    assert done.code == 1
    assert "PREFECT_API_URL" in json.dumps(done.json["error"])
