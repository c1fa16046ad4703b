"""Every shipped profile is valid; every mistake names file, field and mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import InvalidInput
from components.files import digest_of
from components.learning_settings import LearningSettings
from components.settings import Gate, load_profile, project_root

PROFILES = sorted((Path(__file__).resolve().parents[2] / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_shipped_profile_is_valid(file: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURECC_HOME", str(repository))
    profile = load_profile(file.stem)
    assert profile.name == file.stem
    assert (repository / profile.evaluation.prompts).is_file()
    assert profile.gates, "a profile without gates promotes anything"


def test_both_scales_ship() -> None:
    assert {file.stem for file in PROFILES} >= {"tiny", "sd35-medium"}


def edited(project: Path, **changes: Any) -> Path:
    """The tiny profile with changes at dotted keys (dots written `__`); None removes the key."""
    file = project / "profiles" / "tiny.yaml"
    content = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[last]
        else:
            node[last] = value
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning__etta": 1.0}, "learning.etta"),
        ({"surplus": {}}, "surplus"),
        ({"learning__eta": "much"}, "learning.eta"),
        ({"learning__eta": -1}, "learning.eta"),
        ({"learning__extractor__steps": 2.5}, "learning.extractor.steps"),
        ({"learning__extractor__steps": 0}, "learning.extractor.steps"),
        ({"learning__original": "thawed"}, "learning.original"),
        ({"learning__lora": 4}, "learning.lora"),
        ({"base": None}, "base"),
        ({"base__path": None}, "base.path"),
        ({"base__resolution": [64]}, "base.resolution"),
        ({"seed": "zero"}, "seed"),
        ({"gates": {"fidelity/dino": {"minimun": 0.5}}}, "gates.fidelity/dino.minimun"),
        ({"gates_by_kind": {"styles": {}}}, "gates_by_kind.styles.[key]"),
    ],
)
def test_mistake_names_file_field_and_mend(project: Path, changes: dict[str, Any], field: str) -> None:
    file = edited(project, **changes)
    with pytest.raises(InvalidInput) as caught:
        load_profile("tiny")
    assert (caught.value.file, caught.value.field) == (file, field)
    assert caught.value.mend
    assert str(file) in str(caught.value)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        ("learning.etta=1", "learning.etta"),
        ("learning.eta=much", "learning.eta"),
        ("nothing=1", "nothing"),
        ("learning.pure.steps=-3", "learning.pure.steps"),
        ("learning.eta", "--set"),
        ("=1", "--set"),
        ("seed.x=1", "--set"),
        ("learning.eta=[1", "--set learning.eta"),
    ],
)
def test_mistaken_override_names_the_setting(project: Path, assignment: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_profile("tiny", [assignment])
    assert caught.value.field == field


def test_overrides_apply_in_order_and_reach_every_depth(project: Path) -> None:
    overrides = ["learning.eta=2", "learning.extractor.steps=7", "learning.eta=0.5", "learning.guidance='null'"]
    overrides += ["evaluation.evaluators.oracle=null", "seed=3"]
    profile = load_profile("tiny", overrides)
    assert profile.learning.eta == 0.5
    assert profile.learning.extractor.steps == 7
    assert profile.learning.guidance == "null"
    assert profile.evaluation.evaluators.oracle is None
    assert profile.seed == 3


def test_a_kind_of_concepts_has_gates_of_its_own(project: Path) -> None:
    edited(
        project,
        gates={"a": {"minimum": 1.0}, "b": {"maximum": 2.0}},
        gates_by_kind={"style": {"a": None, "b": {"maximum": 3.0}, "c": {"minimum": 4.0}}},
    )
    profile = load_profile("tiny")
    assert profile.gates_for("instance") == {"a": Gate(minimum=1.0), "b": Gate(maximum=2.0)}
    assert profile.gates_for("style") == {"b": Gate(maximum=3.0), "c": Gate(minimum=4.0)}


@pytest.mark.parametrize("content", ["a: [1", "- a\n- b\n", "", "just a sentence"])
def test_file_that_is_no_mapping(project: Path, content: str) -> None:
    file = project / "profiles" / "tiny.yaml"
    file.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        load_profile("tiny")
    assert caught.value.file == file


def test_file_that_is_no_text(project: Path) -> None:
    file = project / "profiles" / "tiny.yaml"
    file.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InvalidInput, match="not YAML"):
        load_profile("tiny")


def test_unknown_profile_lists_the_known(project: Path) -> None:
    with pytest.raises(InvalidInput, match="known profiles: .*tiny"):
        load_profile("tini")


def test_digest_follows_the_named_sections_only(project: Path) -> None:
    plain, other = load_profile("tiny"), load_profile("tiny", ["learning.eta=3"])
    assert plain.digest("base") == other.digest("base")
    assert plain.digest("learning") != other.digest("learning")
    assert plain.digest() != other.digest()
    assert plain.digest() == load_profile("tiny").digest()


def test_root_is_found_from_a_folder_below(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PURECC_HOME")
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert project_root() == project


def test_no_project_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PURECC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="PURECC_HOME"):
        project_root()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["learning.method=lora", "learning.eta=2"], "the method lora does not read it"),
        (["learning.method=lora", "learning.extractor.steps=7"], "the method lora does not read it"),
        (["learning.method=dop", "learning.pure.embedding_learning_rate=1"], "the method dop does not read it"),
        (["learning.method=textual-inversion", "learning.lora.rank=8"], "textual-inversion does not read it"),
        (
            ["learning.method=b-lora", "learning.b_lora={content: [0], style: [1]}", "learning.lora.blocks=[0]"],
            "b-lora",
        ),
        (["learning.prior.images=4"], "the method purecc does not read it"),
        (["learning.pure.weight_learning_rate=1"], "the method purecc does not read it"),
        (["learning.extractor.lora_learning_rate=1"], "the extractor trains embeddings only"),
        (["learning.stages=merged", "learning.extractor.steps=3"], "learns in the steps of `pure`"),
    ],
    ids=str,
)
def test_an_override_that_would_be_ignored_is_refused(project: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"it would be ignored: .*{reason}") as error:
        load_profile("tiny", overrides)
    assert error.value.field == f"--set {overrides[-1].partition('=')[0]}"
    load_profile("tiny", overrides[:-1])  # the others alone are fine, and so is what the file states for purecc


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["learning.lambda_star={fixed: 1, per: batch}"], "a fixed scale has no closed form"),
        (["learning.method=dop", "learning.dop_weight=0"], "take that one"),
        (["learning.method=b-lora", "learning.b_lora=null"], "b-lora needs b_lora.content"),
        (["learning.b_lora={content: [0, 1], style: [1]}"], "cannot be content and style"),
        (["learning.pure.lora_from_step=100000"], "would never train"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(project: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as error:
        load_profile("tiny", overrides)
    assert error.value.file is not None


@pytest.mark.parametrize(
    "overrides",
    [
        ["learning.method=dop"],
        ["learning.method=dreambooth", "learning.prior.images=2"],
        ["learning.method=cifc", "learning.earlier=[a, b]"],
    ],
    ids=str,
)
def test_settings_that_fit_each_other(project: Path, overrides: list[str]) -> None:
    load_profile("tiny", overrides)


@pytest.mark.parametrize(
    ("settings", "stage", "digest"),
    [
        ({}, "extractor", "5439aa0c0848f3f5"),
        ({}, "pure-learning", "0d0c8adbe91bb4f2"),
        ({"stages": "merged"}, "pure-learning", "efda9c5337c8dc3a"),
        ({"lambda_star": {"fixed": 3}}, "pure-learning", "95c10f9ce8330685"),
        ({"method": "lora"}, "pure-learning", "87c51da235b67f4c"),
        ({"method": "dreambooth"}, "pure-learning", "5a3aa5ea597dbf54"),
    ],
)
def test_what_was_trained_before_settings_came_or_went_is_still_known(
    settings: dict[str, Any], stage: Any, digest: str
) -> None:
    """Recorded when every cell of docs/benchmarks was measured: a change here makes all of them, and all that users
    have trained, count as never trained. A new setting is left out where it is off, one taken out is put back.
    """
    learning = LearningSettings.model_validate({"extractor": {"steps": 2}, "pure": {"steps": 2}, **settings})
    assert digest_of(learning.of_stage(stage))[:16] == digest
