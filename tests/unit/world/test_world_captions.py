"""Vocabulary, captions and tokenizers: closed, short enough, and silent about what is held out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from components.world.captions import full_caption, random_caption
from components.world.concepts import INSTANCES, STYLES, write_concepts
from components.world.family import TEXT_LENGTH, clip_tokenizer, t5_tokenizer
from components.world.scene import Scene, place, random_scene
from components.world.vocabulary import (
    HELD_OUT_LOOKS,
    HELD_OUT_STYLES,
    PLACEHOLDER_WORD,
    look_distance,
    named_looks,
    named_styles,
    random_look,
    solid,
    words,
)


def test_every_word_is_one_token_of_each_tokenizer() -> None:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    assert len(set(words())) == len(words())
    assert [word for word in words() if len(clip(word).input_ids) != 3] == []
    assert [word for word in words() if word not in {",", "."} and len(t5(word).input_ids) != 2] == []
    assert t5.unk_token_id not in t5("a star on the left, snow background").input_ids


def test_tokenizers_read_back_what_they_read() -> None:
    text = "a small red star on the left and a blue heart on the right, snow background"
    assert t5_tokenizer().decode(t5_tokenizer()(text).input_ids, skip_special_tokens=True) == text
    assert (
        clip_tokenizer().decode(clip_tokenizer()(text).input_ids, skip_special_tokens=True).replace(" ,", ",") == text
    )


def test_the_vocabulary_is_the_same_in_every_process() -> None:
    program = "from components.world.family import clip_tokenizer as t; print(sorted(t().get_vocab().items()))"
    other = {**os.environ, "PYTHONHASHSEED": "1"}  # a set's order differs from this process's
    seen = subprocess.run([sys.executable, "-c", program], env=other, capture_output=True, text=True, check=True).stdout
    assert seen == f"{sorted(clip_tokenizer().get_vocab().items())}\n"


def test_captions_use_known_words_only_and_are_never_cut() -> None:
    rng, clip, t5 = np.random.default_rng(0), clip_tokenizer(), t5_tokenizer()
    known = set(words())
    texts = [random_caption(scene, rng) for scene in (random_scene(rng) for _ in range(1500))]
    texts += [full_caption(random_scene(rng)) for _ in range(500)]
    for text in texts:
        assert set(text.replace(",", " ,").split()) <= known, text
        assert max(len(clip(text).input_ids), len(t5(text).input_ids)) <= TEXT_LENGTH, text


def test_every_kind_of_text_is_in_distribution() -> None:
    rng = np.random.default_rng(1)
    item = place("heart", solid("red"), "red", "left", "big", rng)
    texts = {random_caption(Scene("snow", (item,)), rng) for _ in range(4000)}
    wanted = {"", "heart", "a heart", "red heart", "a red heart", "snow background", f"{PLACEHOLDER_WORD} heart"}
    wanted |= {"a red heart on the left, snow background", f"a {PLACEHOLDER_WORD} heart on the left, snow background"}
    assert wanted <= texts


def test_held_out_looks_and_styles_have_no_word_and_are_never_drawn() -> None:
    rng = np.random.default_rng(2)
    drawn = [random_look(rng) for _ in range(500)] + list(named_looks().values())
    assert min(look_distance(look, held_out) for look in drawn for held_out in HELD_OUT_LOOKS.values()) > 0.15
    assert not set(named_styles().values()) & set(HELD_OUT_STYLES.values())
    assert len(named_looks()) >= 200
    assert len(named_styles()) >= 5


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> list:  # type: ignore[type-arg]
    return write_concepts(tmp_path_factory.mktemp("concepts"))


def test_the_shipped_concepts_are_whole(shipped: list) -> None:  # type: ignore[type-arg]
    from components.concepts.concept import load_concept

    concepts = [load_concept(folder) for folder in shipped]
    assert sum(concept.kind == "instance" for concept in concepts) >= 8
    assert len(INSTANCES) >= 8
    assert sum(concept.kind == "style" for concept in concepts) >= 4
    assert len(STYLES) >= 4
    assert all(3 <= len(concept.references) <= 5 for concept in concepts)
    for concept in concepts:
        if concept.kind == "instance":  # the context is entangled with the concept
            captions = [reference.text for reference in concept.references]
            backgrounds = {caption.rsplit(", ", 1)[1] for caption in captions if "background" in caption}
            assert len(backgrounds) == (0 if concept.name.endswith("_bare") else 1)


def test_a_bare_concept_has_the_pictures_of_its_twin_and_captions_that_name_no_background(shipped: list) -> None:  # type: ignore[type-arg]
    bare = [folder for folder in shipped if folder.name.endswith("_bare")]
    assert len(bare) == 4
    for folder in bare:
        twin = folder.with_name(folder.name.removesuffix("_bare"))
        assert [file.read_bytes() for file in sorted(folder.glob("*.png"))] == [
            file.read_bytes() for file in sorted(twin.glob("*.png"))
        ]
        told, untold = ((path / "metadata.jsonl").read_text() for path in (twin, folder))
        assert untold == re.sub(r", \w+ background", "", told) != told


def test_the_shipped_concepts_come_out_the_same_each_time(shipped: list, tmp_path) -> None:  # type: ignore[type-arg,no-untyped-def]
    for first, second in zip(shipped, write_concepts(tmp_path), strict=True):
        names = sorted(file.name for file in first.iterdir())
        assert names == sorted(file.name for file in second.iterdir())
        assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
