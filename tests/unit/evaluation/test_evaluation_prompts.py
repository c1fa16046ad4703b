from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from components.concepts.texts import derive_texts
from components.errors import InvalidInput
from components.evaluation.prompts import load_prompts
from components.world.family import TEXT_LENGTH, clip_tokenizer
from components.world.oracle import attribute_labels
from components.world.vocabulary import BACKGROUNDS, words


def prompt_file(folder: Path, categories: str) -> Path:
    file = folder / "prompts.yaml"
    file.write_text(f"name: test\ncategories:\n{categories}", encoding="utf-8")
    return file


def test_templates_are_filled_for_an_instance(tmp_path: Path) -> None:
    prompts = load_prompts(
        prompt_file(
            tmp_path,
            '  place:\n    - {template: "a {concept} and a {class}, snow", expect: {shape: "{class}"}}\n'
            '    - {template: "a red star{style}"}\n  other:\n    - {template: "a red heart"}\n',
        )
    ).for_concept("instance", "mug")
    assert [(p.index, p.category, p.complete, p.base, p.has_concept) for p in prompts] == [
        (0, "place", "a [V] mug and a mug, snow", "a mug and a mug, snow", True),
        (1, "other", "a red heart", "a red heart", False),
    ]
    assert prompts[0].expect == {"shape": "mug"}


def test_templates_are_filled_for_a_style(tmp_path: Path) -> None:
    prompts = load_prompts(
        prompt_file(
            tmp_path,
            '  place:\n    - {template: "a {concept}"}\n    - {template: "a red star{style}"}\n'
            '  other:\n    - {template: "a {class}"}\n    - {template: "a heart"}\n',
        )
    ).for_concept("style", "painting")
    assert [(p.complete, p.base, p.has_concept) for p in prompts] == [
        ("a red star, in [V] style", "a red star", True),
        ("a heart", "a heart", False),
    ]


@pytest.mark.parametrize(
    ("categories", "field", "problem"),
    [
        ('  a:\n    - {template: "a {subject}"}\n', "categories.a.0.template", "{subject}"),
        ('  a:\n    - {template: "a {concept} {concept}"}\n', "categories.a.0.template", "at most once"),
        ('  a:\n    - {template: "a {concept}{style}"}\n', "categories.a.0.template", "at most once"),
        ('  a:\n    - {template: "a {class}{style}"}\n', "categories.a.0.template", "no {class}"),
        ('  a:\n    - {template: "a [V] star"}\n', "categories.a.0.template", "[V]"),
        ('  a:\n    - {template: "a } star"}\n', "categories.a.0.template", "placeholders"),
        ('  a:\n    - {template: "a star", expects: {}}\n', "categories.a.0.expects", "Extra inputs"),
        ('  a:\n    - {template: "a star", expect: {count: 2}}\n', "categories.a.0.expect.count", "valid string"),
        ('  a:\n    - {template: "a star"}\n  b:\n    - {template: "a star"}\n', "categories", "repeats"),
        ("  a: []\n", "categories", "no prompts"),
        ("  []\n", "categories", "dictionary"),
    ],
)
def test_a_wrong_set_is_refused_by_field(tmp_path: Path, categories: str, field: str, problem: str) -> None:
    file = prompt_file(tmp_path, categories)
    with pytest.raises(InvalidInput) as caught:
        load_prompts(file)
    assert problem in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.field is None or caught.value.field.startswith(field)


def test_files_that_are_no_sets(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such prompt set"):
        load_prompts(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InvalidInput, match="not YAML"):
        load_prompts(tmp_path / "bad.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput):
        load_prompts(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    "categories", ['  a:\n    - {template: "a star"}\n', '  a:\n    - {template: "a {concept}"}\n']
)
def test_prompts_with_and_without_the_concept_are_both_needed(tmp_path: Path, categories: str) -> None:
    with pytest.raises(InvalidInput, match="no prompt with"):
        load_prompts(prompt_file(tmp_path, categories)).for_concept("instance", "star")


SHIPPED = [
    *((name, kind) for name in ("world", "subjects") for kind in ("instance", "style")),
    ("dreambench-objects", "instance"),
    ("dreambench-live", "instance"),
]


@pytest.mark.parametrize(("name", "kind"), SHIPPED)
def test_shipped_sets_derive_the_texts_that_training_derives(repository: Path, name: str, kind: str) -> None:
    class_word = "star" if kind == "instance" else "painting"
    prompts = load_prompts(repository / "profiles" / "prompts" / f"{name}.yaml").for_concept(kind, class_word)
    with_concept = [prompt for prompt in prompts if prompt.has_concept]
    assert len(with_concept) >= 10
    assert len(prompts) - len(with_concept) >= 10
    assert len({prompt.complete for prompt in prompts}) == len(prompts)
    for prompt in with_concept:
        texts = derive_texts(prompt.complete, kind=kind, class_word=class_word)
        assert (texts.complete, texts.base) == (prompt.complete, prompt.base)


@pytest.mark.parametrize("kind", ["instance", "style"])
def test_the_worlds_prompts_are_in_its_vocabulary_and_judgeable(repository: Path, kind: str) -> None:
    labels = attribute_labels()
    for prompt in load_prompts(repository / "profiles/prompts/world.yaml").for_concept(kind, "star"):
        spoken = re.findall(r"\[V\]|[a-z]+|[^\sa-z]", prompt.complete)
        assert set(spoken) - {"[V]"} <= set(words()), prompt.complete
        for attribute, label in prompt.expect.items():
            assert label in labels[attribute], (prompt.complete, attribute)
            assert label in prompt.base, "an expectation is said in the text"


@pytest.mark.parametrize("kind", ["instance", "style"])
def test_the_worlds_set_covers_its_categories_and_fits_the_text_encoders(repository: Path, kind: str) -> None:
    prompts = load_prompts(repository / "profiles/prompts/world.yaml").for_concept(kind, "star")
    assert len(prompts) >= 150
    counts = Counter(prompt.category for prompt in prompts)
    assert list(counts) == ["background", "position", "company", "colour change", "property", "style", "composition",
                            "without the concept"]  # fmt: skip
    assert min(counts.values()) >= 15
    for background in BACKGROUNDS:
        assert sum(prompt.expect.get("background") == background for prompt in prompts) >= 10, background
    tokenizer = clip_tokenizer()
    for prompt in prompts:
        tokens = tokenizer(prompt.complete.replace("[V]", "sks"))["input_ids"]
        assert len(tokens) <= TEXT_LENGTH, prompt.complete


@pytest.mark.parametrize(("name", "last"), [("objects", "a cube shaped [V] vase"), ("live", "a cube shaped [V] vase")])
def test_dreambench_has_its_25_prompts(repository: Path, name: str, last: str) -> None:
    prompts = load_prompts(repository / f"profiles/prompts/dreambench-{name}.yaml").for_concept("instance", "vase")
    texts = [prompt.complete for prompt in prompts if prompt.has_concept]
    assert len(texts) == 25
    assert {"a [V] vase in the jungle", "a purple [V] vase", last} <= set(texts)
    assert ("a [V] vase wearing a santa hat" in texts) is (name == "live")


def test_a_profile_may_take_the_first_of_each_category(tmp_path: Path) -> None:
    prompt_set = load_prompts(
        prompt_file(
            tmp_path,
            '  a:\n    - {template: "a {concept}"}\n    - {template: "x{style}"}\n    - {template: "one"}\n'
            '    - {template: "b {concept}"}\n    - {template: "c {concept}"}\n'
            '  b:\n    - {template: "d {concept}"}\n    - {template: "two"}\n    - {template: "three"}\n',
        )
    )

    def texts(**limits: int) -> list[str]:
        return [prompt.base for prompt in prompt_set.for_concept("instance", "star", **limits)]

    assert texts() == ["a star", "one", "b star", "c star", "d star", "two", "three"]
    assert texts(per_category=2) == ["a star", "one", "b star", "d star", "two", "three"]
    assert texts(per_category=1, without_concept=2) == ["a star", "one", "d star", "two"]
    chosen = prompt_set.for_concept("instance", "star", per_category=1)
    assert [prompt.index for prompt in chosen] == list(range(len(chosen)))
