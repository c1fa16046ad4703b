"""Prompts to token ids and concept rows."""

from __future__ import annotations

import pytest
from transformers import T5Tokenizer

from components.backbones.concept_embeddings import embedding_index
from components.backbones.prompts import PromptTokenizer
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.settings import BaseSettings


@pytest.fixture
def tokenizer(backbone: SD3Backbone) -> PromptTokenizer:
    return backbone.tokenizer


def test_concept_rows_hold_the_placeholder_and_nothing_else_does(tokenizer: PromptTokenizer) -> None:
    prompts = ["a [V] star on the left, brick background", "[V] star", "a star, in [V] style", ""]
    tokens = tokenizer(prompts)
    word = tokenizer.clip("sks", add_special_tokens=False).input_ids[0]
    t5_word = tokenizer.t5("sks", add_special_tokens=False).input_ids[0]
    for index, rows in enumerate(tokens.concept_rows):
        clip_at = [i for i, token in enumerate(tokens.clip_BN[index].tolist()) if token == word]
        t5_at = [i for i, token in enumerate(tokens.t5_BM[index].tolist()) if token == t5_word]
        expected = (*clip_at, *(tokenizer.clip_length + i for i in t5_at))
        assert rows == ({"": expected} if expected else {})
    assert [len(rows) for rows in tokens.concept_rows] == [1, 1, 1, 0]


def test_ids_are_those_of_the_plain_text(tokenizer: PromptTokenizer) -> None:
    """The placeholder word stands in the concept's place: the ids equal those of the prompt written with it."""
    concept, plain = tokenizer(["a [V] star on snow"]), tokenizer(["a sks star on snow"])
    assert concept.clip_BN.equal(plain.clip_BN)
    assert concept.clip_2_BN.equal(plain.clip_2_BN)
    assert concept.t5_BM is not None
    assert plain.t5_BM is not None
    assert concept.t5_BM.equal(plain.t5_BM)
    assert plain.concept_rows == ({},), "the word itself is no mention"


def test_named_and_repeated_concepts(tokenizer: PromptTokenizer) -> None:
    tokens = tokenizer(["a <my_dog> star and a [V] circle and a <my_dog> ring"])
    length = tokenizer.clip_length
    assert tokens.concept_rows == ({"my_dog": (2, 10, length + 1, length + 9), "": (6, length + 5)},)


def test_the_same_name_gives_the_same_rows_as_the_placeholder(tokenizer: PromptTokenizer) -> None:
    named, active = tokenizer(["a <cat> star"]), tokenizer(["a [V] star"])
    assert named.clip_BN.equal(active.clip_BN)
    assert named.concept_rows[0]["cat"] == active.concept_rows[0][""]


def test_a_mention_next_to_the_placeholder_word_is_told_apart(tokenizer: PromptTokenizer) -> None:
    assert tokenizer(["sks [V] sks"]).concept_rows == ({"": (2, tokenizer.clip_length + 1)},)


def test_a_concept_beyond_the_maximal_length_is_refused(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InvalidInput, match="beyond the 20 tokens that CLIP reads"):
        tokenizer(["a red star on the left, brick background and a green star on the right and a [V] star"])


def test_a_concept_beyond_the_rows_of_t5_is_refused(tokenizer: PromptTokenizer) -> None:
    short = PromptTokenizer(tokenizer.clip, tokenizer.clip_2, tokenizer.t5, placeholder="sks", max_sequence_length=4)
    short(["a [V] star"])
    with pytest.raises(InvalidInput, match="beyond the 4 tokens that T5 reads"):
        short(["a red star and a [V] star"])


@pytest.mark.parametrize("word", ["xyzzyqw", "red star", ""])
def test_the_placeholder_has_to_be_one_token(base_settings: BaseSettings, word: str) -> None:
    with pytest.raises(InvalidInput) as error:
        SD3Backbone.load(base_settings.model_copy(update={"placeholder": word}))
    assert error.value.field == "base.placeholder"


def test_without_t5_a_mention_has_one_row(tokenizer: PromptTokenizer) -> None:
    two = PromptTokenizer(tokenizer.clip, tokenizer.clip_2, None, placeholder="sks", max_sequence_length=20)
    tokens = two(["a [V] star"])
    assert (two.rows_per_mention, tokens.t5_BM, tokens.concept_rows) == (1, None, ({"": (2,)},))


def test_a_placeholder_of_several_t5_tokens(tokenizer: PromptTokenizer) -> None:
    """As in the real T5, where a rare word is several pieces: R = 1 + their number, in order within each mention."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), ("▁sk", -1.0), ("s", -1.0), (",", -1.0)]
    pieces += [(f"▁{word}", -2.0) for word in ("a", "star", "and", "ring")]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0)
    several = PromptTokenizer(tokenizer.clip, tokenizer.clip_2, t5, placeholder="sks", max_sequence_length=12)
    assert several.rows_per_mention == 3
    rows = several(["a [V] star and a [V], ring"]).concept_rows[0][""]
    n = several.clip_length
    # T5: a | sk s | star | and | a | sk s | , | ring
    assert rows == (2, 6, n + 1, n + 2, n + 6, n + 7)
    assert [embedding_index(position, len(rows), 3) for position in range(6)] == [0, 0, 1, 2, 1, 2]


@pytest.mark.parametrize("prompt", ["a" * 1001, "a [V] star\x00", "a \ud800 star", "a \x1b[2J star"])
def test_a_prompt_too_long_or_of_other_than_characters_is_refused(tokenizer: PromptTokenizer, prompt: str) -> None:
    with pytest.raises(InvalidInput, match="prompt: .*(at most 1000|is not printable)"):
        tokenizer([prompt])
    tokenizer(["a [V] star " + "on a very red " * 5, "two\nlines", ""])
