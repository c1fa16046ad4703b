from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from components.errors import InvalidInput, TrainingDiverged
from flows import start
from flows.cli import app
from flows.console import Output, command, finite, report
from flows.outcome import GatesRefused, Outcome

REFUSED = Outcome(
    name="star",
    status="refused",
    version=2,
    champion=1,
    reason="m = 0.25, needs >= 0.5",
    run="r",
    report=None,
    profile="tiny",
    gates=[{"metric": "m", "value": 0.25, "bound": ">= 0.5", "passed": False, "champion": None, "reason": ""}],
    refused=True,
)
PROMOTED = Outcome("star", "promoted", 3, 3, "every gate is passed", "r", None, "tiny", metrics={"m": float("nan")})


@pytest.fixture
def concept(project: Path) -> Path:
    folder = project / "data" / "concepts" / "star"
    folder.mkdir(parents=True)
    (folder / "concept.yaml").write_text("")
    return folder


def purecc(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def error_of(result: Result) -> dict[str, Any]:
    content = json.loads(result.stdout)
    assert content["status"] == "error"
    return dict(content["error"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["customize", "nothing"], "no concept 'nothing'"),
        (["customize", "../star"], "no concept"),
        (["customize", "star", "--profile", "none"], "no profile 'none'"),
        (["customize", "star", "--set", "learning.etha=1"], "Extra inputs"),
        (["customize", "star", "--set", "learning.eta=high"], "valid number"),
        (["customize", "star", "--set", "learning.eta"], "not KEY=VALUE"),
        (["concepts", "show", "nothing"], "no concept 'nothing'"),
        (["concepts", "validate", "nothing"], "no concept 'nothing'"),
        (["concepts", "add", "x", "a.png", "--kind", "thing"], "neither instance nor style"),
        (["concepts", "add", "x", "a.png"], "missing"),
        (["models", "show", "nothing"], "no adapter of 'nothing'"),
        (["models", "promote", "nothing", "1"], "no adapter of 'nothing'"),
        (["models", "rollback", "nothing"], "no adapter of 'nothing'"),
        (["models", "verify", "nothing"], "no adapter of 'nothing'"),
        (["report"], "no report yet"),
        (["report", "nothing"], "no report of 'nothing'"),
        (["generate", "a" * 1001], "1001 characters, at most 1000"),
        (["generate", "a \x1b[2J star"], "U+001B"),
        (["generate", "a [V] star"], "[V] is for datasets"),
        (["generate", "a <star> star"], "<star> has no champion"),
        (["generate", "a star", "--out", "star.jpg"], "ends in .png"),
    ],
)
def test_wrong_use_exits_2_and_says_what_is_wrong(concept: Path, arguments: list[str], message: str) -> None:
    plain, machine = purecc(*arguments), purecc(*arguments, "--json")
    assert (plain.exit_code, machine.exit_code) == (2, 2)
    assert plain.stdout == ""
    assert message in error_of(machine)["message"]
    assert "Traceback" not in plain.stderr


@pytest.mark.parametrize(
    "arguments", [["customize"], ["nonsense"], ["customize", "a", "b"], ["models", "promote", "star", "first"], []]
)
def test_malformed_commands_exit_2(project: Path, arguments: list[str]) -> None:
    assert purecc(*arguments).exit_code == 2


def test_a_benchmark_of_what_is_not_there_is_wrong_use(project: Path) -> None:
    unknown = purecc("benchmark", "--json")
    assert unknown.exit_code == 2
    assert "striped_star" in error_of(unknown)["message"]
    assert error_of(purecc("benchmark", "--plan", "none.yaml", "--json"))["file"] == "none.yaml"
    assert error_of(purecc("benchmark", "--seeds", "first", "--json"))["field"] == "--seeds"
    assert "none" in error_of(purecc("benchmark", "--profile", "none", "--json"))["message"]
    assert "biscuit" in error_of(purecc("benchmark", "--profile", "tiny", "--concepts", "biscuit", "--json"))["message"]


def test_a_report_of_a_part_of_a_plan_says_which() -> None:
    from flows.cli_benchmark import _command

    asked = {"--plan": "x.yaml", "--methods": "eta 0,lora", "--concepts": None, "--prompts": 4}
    assert _command(asked) == "purecc benchmark --plan x.yaml --methods 'eta 0,lora' --prompts 4"


def test_a_benchmark_with_another_profile_than_the_plans_has_a_table_of_its_own(project: Path) -> None:
    from components.benchmark.plan import Plan
    from flows.cli_benchmark import _title

    file = project / "weekly.yaml"
    file.write_text("{profile: tiny, concepts: [star], seeds: [0], steps: [1], variants: {lora: []}}")
    plan = Plan(concepts=["star"], seeds=[0], steps=[1], variants={"lora": {}})
    assert _title(file, plan) == "weekly"
    assert _title(file, plan.model_copy(update={"profile": "profiles/sd35-medium.yaml"})) == "weekly-sd35-medium"


@pytest.mark.parametrize("name", ["export"])
def test_there_are_no_stubs(project: Path, name: str) -> None:
    assert purecc(name).exit_code == 2


def test_empty_lists(project: Path) -> None:
    assert json.loads(purecc("concepts", "list", "--json").stdout) == []
    assert json.loads(purecc("models", "list", "--json").stdout) == []
    assert "nothing is registered yet" in purecc("models", "list").stdout


def test_a_refusal_exits_1_naming_each_failed_gate(concept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Outcome:
        raise GatesRefused(REFUSED)

    monkeypatch.setattr(start, "customize", refuse)
    plain, machine = purecc("customize", "star"), purecc("customize", "star", "--json")
    assert (plain.exit_code, machine.exit_code) == (1, 1)
    assert "m = 0.25, needs >= 0.5" in plain.stdout
    assert "version 1 stays the champion" in plain.stdout
    assert json.loads(machine.stdout)["status"] == "refused"
    assert json.loads(machine.stdout)["gates"][0]["metric"] == "m"


def test_a_promotion_exits_0_and_its_json_has_no_nan(concept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "customize", lambda *arguments: PROMOTED)
    machine = purecc("customize", "star", "--json")
    assert machine.exit_code == 0
    assert json.loads(machine.stdout, parse_constant=pytest.fail)["metrics"] == {"m": None}
    assert "version 3" in purecc("customize", "star").stdout


def test_what_libraries_print_is_no_part_of_the_result(concept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*arguments: Any) -> Outcome:
        print("Loading weights from local directory")
        return PROMOTED

    monkeypatch.setattr(start, "customize", noisy)
    machine, plain = purecc("customize", "star", "--json"), purecc("customize", "star")
    assert json.loads(machine.stdout)["status"] == "promoted"
    assert "version 3" in plain.stdout
    for result in (machine, plain):
        assert "Loading weights" in result.stderr
        assert "Loading weights" not in result.stdout


def test_work_that_fails_exits_1(concept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any) -> Outcome:
        raise TrainingDiverged("the loss became nan at step 3")

    monkeypatch.setattr(start, "customize", diverge)
    result = purecc("customize", "star", "--json")
    assert result.exit_code == 1
    assert error_of(result) == {"kind": "TrainingDiverged", "message": "the loss became nan at step 3"}


def test_an_internal_error_leaves_its_traceback_in_a_file(concept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Outcome:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(start, "customize", fail)
    result = purecc("customize", "star", "--json")
    assert result.exit_code == 1
    details = Path(error_of(result)["details"])
    assert "ZeroDivisionError: oops" in details.read_text()
    assert "Traceback" not in result.stderr


def test_errors_name_file_field_and_mend(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidInput("two [V]", file="metadata.jsonl", field="line 2: text", mend="remove one")
    output = Output(as_json=True)
    assert report(error, output) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"] == {
        "kind": "InvalidInput",
        "message": "two [V]",
        "file": "metadata.jsonl",
        "field": "line 2: text",
        "mend": "remove one",
    }
    for part in ("two [V]", "metadata.jsonl", "line 2: text", "remove one"):
        assert part in shown.err


def test_an_interrupt_exits_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseException) as caught, command(as_json=False):
        raise KeyboardInterrupt
    assert getattr(caught.value, "exit_code", None) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_after_the_result_an_error_adds_no_second_document(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.result({"a": 1}, lambda: None)
    report(InvalidInput("late"), output)
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_finite() -> None:
    nan = float("nan")
    assert finite({"a": [nan, 1.5, (float("-inf"),)], 2: {"b": nan}}) == {"a": [None, 1.5, [None]], "2": {"b": None}}


def test_usage_errors_are_json_too_and_nothing_heavy_is_imported_for_them(project: Path) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'mlflow', 'prefect', 'great_expectations', 'dvc', 'diffusers', 'pandas')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['purecc', *sys.argv[1:]]\n"
        "from flows.cli import main; main()"
    )
    environment = {**os.environ, "PURECC_HOME": str(project)}
    for arguments, expected in ((["customize", "--json"], 2), (["models", "list", "--json"], 0), (["--help"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == expected
        assert done.stderr.splitlines()[-1] == "[]"
        if "--json" in arguments:
            json.loads(done.stdout)


def test_a_concept_that_could_not_be_versioned_is_not_added(project: Path) -> None:
    image = project / "1.png"
    image.write_bytes(b"never looked at")
    error = error_of(purecc("concepts", "add", "mine", str(image), "--class-word", "star", "--json"))
    assert error["message"] == "no DVC project, so data cannot be versioned"
    assert "dvc init" in error["mend"]
    assert not (project / "data").exists()
