"""Every shipped profile is valid; every mistake names file, field and mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import InvalidInput
from components.settings import load_profile, project_root

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
