"""The texts of a concept (METHOD section 1) and the mentions of concepts in prompts.

In data the concept is written `[V]`; in prompts for consumers it is written `<name>`. This module is the only one that
takes either apart.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from components.errors import InvalidInput

PLACEHOLDER = "[V]"
MAXIMUM_TEXT_LENGTH = 300
"""Characters of a text or base text: about what 77 CLIP tokens hold."""
MAXIMUM_PROMPT_LENGTH = 1000
"""Characters of a prompt: more than any encoder reads; tokenizers take time for what they then cut off."""
NAME_PATTERN = r"[a-z][a-z0-9_-]{0,62}"
CLASS_WORD_PATTERN = r"[^\W_]+(?:[ '\-][^\W_]+){0,5}"
"""One to six words of letters and digits, e.g. `star` or `stuffed animal`."""
STYLE_CLASS_WORD = "style"

_MENTION = re.compile(rf"\[V\]|<({NAME_PATTERN})>")
_ARTICLE = re.compile(r"\b(an?)$", re.IGNORECASE)
# Words whose first letter misleads about the article: "an hour", "a unicorn", "a European", "a one-way street".
_SILENT_H = re.compile(r"(?:hour|honest|honou?r|heir)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n|m)|us[aeiu]|ut[aeio]|ubiq|eu|ewe|one\b|once\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Texts:
    """What METHOD section 1 asks of one reference image.

    Attributes:
        complete: with the identifier, e.g. `a [V] dog standing on a surfboard`.
        base: the complete text less the identifier, e.g. `a dog standing on a surfboard`.
        target: the concept alone, e.g. `[V] dog`.
        class_text: the target less the identifier, e.g. `dog`.
    """

    complete: str
    base: str
    target: str
    class_text: str


@dataclass(frozen=True)
class Mention:
    """One concept named in a prompt: `prompt[start:end]`; the name of `[V]` is the empty string."""

    name: str
    start: int
    end: int


def mentions(prompt: str) -> list[Mention]:
    """The concepts that a prompt names, `[V]` or `<name>`, in order of appearance."""
    return [Mention(match.group(1) or "", match.start(), match.end()) for match in _MENTION.finditer(prompt)]


def without_mentions(prompt: str, *, kind: str = "instance") -> str:
    """The prompt as the original model gets it: every mention removed, `a <my_dog> dog` -> `a dog`.

    With `kind="style"` the whole phrase goes, `a dog, in <ink> style` -> `a dog`, where the mention stands in one.
    """
    while found := mentions(prompt):
        prompt = _less_style(prompt, found[0]) if kind == "style" else _less(prompt, found[0].start, found[0].end)
    return prompt


def derive_texts(text: str, *, kind: str, class_word: str, base_text: str | None = None) -> Texts:
    """The texts of a reference from its complete text.

    Args:
        text: the complete text; `[V]` stands in it exactly once.
        kind: `instance` or `style`.
        class_word: what the concept is an example of; it stands in the text of an instance.
        base_text: replaces the derived base text.

    Raises:
        InvalidInput: the field `text` or `base_text` is not as it must be; the caller adds the file.
    """
    problem = text_problem(text) or _placeholder_problem(text)
    if problem:
        raise InvalidInput(problem[0], field="text", mend=problem[1])
    text = _tidy(text)
    if kind == "instance" and not contains_word(text, class_word):
        raise InvalidInput(
            f"the class word {class_word!r} does not stand in {_shown(text)}",
            field="text",
            mend=f"write e.g. 'a [V] {class_word} ...'",
        )
    mention = mentions(text)[0]
    if base_text is not None:
        problem = text_problem(base_text) or _base_problem(base_text)
        if problem:
            raise InvalidInput(problem[0], field="base_text", mend=problem[1])
        base = _tidy(base_text)
    elif kind == "style":
        if not _style_phrase(text, mention):
            raise InvalidInput(
                f"{_shown(text)} names no '[V] style'",
                field="text",
                mend="write e.g. 'a dog on a beach, in [V] style', or give base_text",
            )
        base = _less_style(text, mention)
    else:
        base = _less(text, mention.start, mention.end)
    if not base:
        raise InvalidInput(
            f"{_shown(text)} leaves nothing for the base text",
            field="text",
            mend="say what the image shows besides the concept, or give base_text",
        )
    return Texts(complete=text, base=base, target=f"{PLACEHOLDER} {class_word}", class_text=class_word)


def text_problem(text: str) -> tuple[str, str] | None:
    """What is wrong with a text whatever it is for, and the mend; None if nothing is."""
    if not text.strip():
        return "the text is empty", "describe the image"
    if len(text) > MAXIMUM_TEXT_LENGTH:
        return f"{len(text)} characters, at most {MAXIMUM_TEXT_LENGTH} are read by a text encoder", "shorten the text"
    for character in text:
        # Cc control, Cf invisible format marks, Cs lone surrogates, Co and Cn no characters at all, Zl/Zp line breaks
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            return f"the character U+{ord(character):04X} in {_shown(text)} is not printable", "remove the character"
    return None


def prompt_problem(prompt: str) -> tuple[str, str] | None:
    """Why a prompt is not read, and the mend; None if it is. The empty prompt, a negative one, is."""
    if len(prompt) > MAXIMUM_PROMPT_LENGTH:
        return f"{len(prompt)} characters, at most {MAXIMUM_PROMPT_LENGTH} are read", "shorten the prompt"
    for character in prompt:
        if character not in "\n\r\t" and unicodedata.category(character) in {"Cc", "Cs", "Co", "Cn"}:
            shown = f"the character U+{ord(character):04X} in {_shown(prompt)} is not printable"
            return shown, "remove the character"
    return None


def contains_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word (or words), whatever the case."""
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE) is not None


def with_article(words: str) -> str:
    """`dog` -> `a dog`, `owl` -> `an owl`."""
    return f"{_article(words)} {words}"


def _placeholder_problem(text: str) -> tuple[str, str] | None:
    count = text.count(PLACEHOLDER)
    if count > 1:
        return f"[V] stands {count} times in {_shown(text)}", "write [V] exactly once"
    if count == 0:
        near = re.search(r"\[\s*v\s*\]|<\s*v\s*>", text, re.IGNORECASE)
        found = f", but {near.group()!r} does" if near else ""
        return f"[V] does not stand in {_shown(text)}{found}", "write [V] once, where the concept is named"
    return _angle_problem(text)


def _base_problem(text: str) -> tuple[str, str] | None:
    if re.search(r"\[v\]", text, re.IGNORECASE):
        return f"[V] stands in the base text {_shown(text)}", "a base text describes the image without the concept"
    return _angle_problem(text)


def _angle_problem(text: str) -> tuple[str, str] | None:
    # Also keeps the tokenizers' own marks, such as <|endoftext|>, out of the data.
    if "<" in text or ">" in text:
        return f"'<' or '>' stands in {_shown(text)}", "in data a concept is written [V]; remove the angle brackets"
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _article(following: str) -> str:
    word = following.lstrip("\"'(")
    if _SILENT_H.match(word):
        return "an"
    return "an" if word[:1].lower() in "aeiou" and word and not _CONSONANT_SOUND.match(word) else "a"


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" +([,;:.!?])", r"\1", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    return text.strip().strip(",;:").strip()


def _less(text: str, start: int, end: int) -> str:
    """`text` without `text[start:end]`; the article before the gap fits the word after it."""
    before, after = text[:start].rstrip(), text[end:].lstrip()
    article = _ARTICLE.search(before)
    if article and after[:1].isalnum():
        fitting = _article(after)
        if article.group().lower() != fitting:
            before = before[: article.start()] + (fitting.capitalize() if article.group()[0] == "A" else fitting)
    elif article:
        before = before[: article.start()]
    return _tidy(f"{before} {after}")


def _style_phrase(text: str, mention: Mention) -> tuple[int, int] | None:
    """Where the phrase that names the style stands: `, in [V] style`, `in the style of [V]`, `[V] style`."""
    head, mark, tail = text[: mention.start], text[mention.start : mention.end], text[mention.end :]
    after = re.match(r"[ -]style\b", tail, re.IGNORECASE)
    if after:
        lead = re.search(r"[,;:]?\s*\b(?:(?:in|with|of)(?:\s+(?:the|an?))?\s*)$", head, re.IGNORECASE)
        return (lead.start() if lead else mention.start), mention.end + after.end()
    before = re.search(r"[,;:]?\s*(?:\b(?:in|with)\s+)?(?:\b(?:the|an?)\s+)?\bstyle\s+of\s+$", head, re.IGNORECASE)
    return (before.start(), mention.start + len(mark)) if before else None


def _less_style(text: str, mention: Mention) -> str:
    phrase = _style_phrase(text, mention)
    return _less(text, *phrase) if phrase else _less(text, mention.start, mention.end)
