"""The texts of METHOD section 1: fixed examples, and properties over generated ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.concepts.texts import PLACEHOLDER, Mention, Texts, derive_texts, mentions, without_mentions
from components.errors import InvalidInput

WORDS = ["dog", "owl", "star", "red", "old", "surfboard", "unicorn", "hour", "on", "the", "beach"]
words = st.sampled_from(WORDS)


@pytest.mark.parametrize(
    ("text", "class_word", "base"),
    [
        ("a [V] dog standing on a surfboard", "dog", "a dog standing on a surfboard"),
        ("a [V] star on the left, brick background", "star", "a star on the left, brick background"),
        ("a [V] dog", "dog", "a dog"),
        ("an [V] dog", "dog", "a dog"),
        ("a [V] owl at night", "owl", "an owl at night"),
        ("A [V] owl", "owl", "An owl"),
        ("a [V] unicorn", "unicorn", "a unicorn"),
        ("a [V] hourglass", "hourglass", "an hourglass"),
        ("the [V] dog", "dog", "the dog"),
        ("[V] dog on grass", "dog", "dog on grass"),
        ("a photo of a [V] stuffed animal", "stuffed animal", "a photo of a stuffed animal"),
        ("a  dog ,  [V] , on grass", "dog", "a dog, on grass"),
        ("my dog, called [V]", "dog", "my dog, called"),
    ],
)
def test_base_of_an_instance(text: str, class_word: str, base: str) -> None:
    texts = derive_texts(text, kind="instance", class_word=class_word)
    assert (texts.base, texts.target, texts.class_text) == (base, f"[V] {class_word}", class_word)


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("a lighthouse at dusk, in [V] style", "a lighthouse at dusk"),
        ("a star on the left, brick background, in [V] style", "a star on the left, brick background"),
        ("a lighthouse in the style of [V]", "a lighthouse"),
        ("a painting in a [V] style of a lighthouse", "a painting of a lighthouse"),
        ("a [V] style owl", "an owl"),
        ("a [V]-style owl", "an owl"),
        ("[V] style, a lighthouse", "a lighthouse"),
        ("In [V] style: a lighthouse", "a lighthouse"),
    ],
)
def test_base_of_a_style(text: str, base: str) -> None:
    assert derive_texts(text, kind="style", class_word="style") == Texts(text, base, "[V] style", "style")


def test_a_given_base_text_overrides_the_derived_one() -> None:
    texts = derive_texts("a [V] dog", kind="instance", class_word="dog", base_text="a small dog")
    assert texts.base == "a small dog"
    assert derive_texts("ink, [V]", kind="style", class_word="style", base_text="ink").base == "ink"


@pytest.mark.parametrize(
    ("text", "base_text", "field", "problem", "mend"),
    [
        ("a dog", None, "text", "[V] does not stand in 'a dog'", "write [V] once"),
        ("a [v] dog", None, "text", "but '[v]' does", "write [V] once"),
        ("a [V] dog and a [V] cat", None, "text", "[V] stands 2 times", "write [V] exactly once"),
        ("a [V] cat", None, "text", "the class word 'dog' does not stand", "a [V] dog ..."),
        ("a [V] doghouse", None, "text", "the class word 'dog' does not stand", "a [V] dog ..."),
        ("", None, "text", "the text is empty", "describe the image"),
        ("a [V] dog" + "x" * 300, None, "text", "309 characters, at most 300", "shorten the text"),
        ("a [V] dog\x07", None, "text", "U+0007", "remove the character"),
        ("a [V]\n dog", None, "text", "U+000A", "remove the character"),
        ("a [V] \u202edog", None, "text", "U+202E", "remove the character"),
        ("a [V] dog \ud800", None, "text", "U+D800", "remove the character"),
        ("a [V] dog and <my_cat>", None, "text", "'<' or '>'", "written [V]"),
        ("a [V] dog <|endoftext|>", None, "text", "'<' or '>'", "written [V]"),
        ("a [V] dog", "a [V] dog", "base_text", "[V] stands in the base text", "without the concept"),
        ("a [V] dog", "", "base_text", "the text is empty", "describe the image"),
    ],
)
def test_a_text_that_cannot_be_is_refused(
    text: str, base_text: str | None, field: str, problem: str, mend: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        derive_texts(text, kind="instance", class_word="dog", base_text=base_text)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert mend in (caught.value.mend or "")


@pytest.mark.parametrize("text", ["a [V] lighthouse", "[V] style", "in [V] style"])
def test_a_style_text_without_a_style_phrase_or_content_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        derive_texts(text, kind="style", class_word="style")
    assert caught.value.field == "text"
    assert "base_text" in (caught.value.mend or "")


def test_mentions_are_found_with_their_places() -> None:
    prompt = "a <my_dog> dog, a [V] cat, <Not> <|end|> < x >"
    assert mentions(prompt) == [Mention("my_dog", 2, 10), Mention("", 18, 21)]
    assert [prompt[mention.start : mention.end] for mention in mentions(prompt)] == ["<my_dog>", "[V]"]


def test_a_consumers_prompt_without_its_concepts() -> None:
    assert without_mentions("a <striped_star> star and an <owl-2> owl") == "a star and an owl"
    assert without_mentions("a dog, in <ink> style", kind="style") == "a dog"


@given(
    before=st.lists(words, max_size=5), after=st.lists(words, max_size=5), class_word=st.sampled_from(["dog", "owl"])
)
def test_base_is_the_complete_text_less_the_identifier(before: list[str], after: list[str], class_word: str) -> None:
    complete = " ".join([*before, PLACEHOLDER, class_word, *after])
    texts = derive_texts(complete, kind="instance", class_word=class_word)
    assert texts.complete == complete
    assert texts.base.split() == [*before, class_word, *after]
    assert mentions(texts.base) == []
    assert mentions(texts.target) == [Mention("", 0, len(PLACEHOLDER))]


@given(content=st.lists(words, min_size=1, max_size=6))
def test_a_style_is_taken_off_whatever_stands_before_it(content: list[str]) -> None:
    assert derive_texts(" ".join(content) + ", in [V] style", kind="style", class_word="style").base == " ".join(
        content
    )


@given(text=st.text(max_size=60), kind=st.sampled_from(["instance", "style"]))
def test_any_text_gives_sound_texts_or_a_named_error(text: str, kind: str) -> None:
    refused: InvalidInput | None = None
    try:
        texts = derive_texts(text, kind=kind, class_word="dog" if kind == "instance" else "style")
    except InvalidInput as error:
        refused = error
    if refused is not None:
        assert refused.field == "text"
        assert refused.mend
    else:
        assert texts.complete.count(PLACEHOLDER) == 1
        assert texts.base
        assert PLACEHOLDER not in texts.base


@given(prompt=st.text(alphabet="ab <>[]V_-", max_size=40))
def test_removing_mentions_leaves_none(prompt: str) -> None:
    assert mentions(without_mentions(prompt)) == []
    assert mentions(without_mentions(prompt, kind="style")) == []
