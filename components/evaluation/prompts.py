"""Prompt sets: named categories of templates, and the prompts that they make for one concept.

A template holds at most one of two placeholders: `{concept}` (an instance: "[V] star" in the complete text, "star" in
the base text) or `{style}` (a style: ", in [V] style" in the complete text, nothing in the base text). A template with
neither is a prompt *without* the concept. `{class}` stands for the class word; only instances have one that an image
shows, so such a template is left out for styles. `expect` is what a right image shows, for the oracle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import InvalidInput

IDENTIFIER = "[V]"
_PLACEHOLDERS = ("concept", "style", "class")


@dataclass(frozen=True)
class Prompt:
    """One prompt for one concept.

    Attributes:
        index: its place in the set, which names its images.
        category: the named category it belongs to.
        complete: the text for the customized model; holds `[V]` if `has_concept`.
        base: the text for the original model: the complete text less the identifier.
        has_concept: whether the concept is asked for.
        expect: attribute -> label that a right image shows.
    """

    index: int
    category: str
    complete: str
    base: str
    has_concept: bool
    expect: Mapping[str, str] = field(default_factory=dict)


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    template: str = Field(min_length=1, max_length=500)
    expect: dict[str, str] = {}

    @field_validator("template")
    @classmethod
    def _placeholders_are_known(cls, template: str) -> str:
        found = re.findall(r"\{([^{}]*)\}", template)
        unknown = sorted(set(found) - set(_PLACEHOLDERS))
        if unknown or template.count("{") != len(found) or template.count("}") != len(found):
            raise ValueError(f"placeholders are {{concept}}, {{style}} and {{class}}, got {template!r}")
        if sum(name in ("concept", "style") for name in found) > 1:
            raise ValueError(f"{{concept}} or {{style}} stands at most once, got {template!r}")
        if "style" in found and "class" in found:
            raise ValueError(f"a style has no {{class}}, got {template!r}")
        if IDENTIFIER in template:
            raise ValueError(f"{IDENTIFIER} is put in by {{concept}} or {{style}}, got {template!r}")
        return template

    @property
    def needs(self) -> Literal["instance", "style", "any"]:
        if "{style}" in self.template:
            return "style"
        return "instance" if "{concept}" in self.template or "{class}" in self.template else "any"

    @property
    def has_concept(self) -> bool:
        return "{concept}" in self.template or "{style}" in self.template


class PromptSet(BaseModel):
    """A prompt set as its YAML file states it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str = Field(min_length=1)
    about: str = ""
    categories: dict[str, list[_Item]] = Field(min_length=1)

    @model_validator(mode="after")
    def _templates_are_unique(self) -> PromptSet:
        seen: set[str] = set()
        for category, items in self.categories.items():
            if not items:
                raise ValueError(f"category {category!r} has no prompts")
            for item in items:
                if item.template in seen:
                    raise ValueError(f"category {category!r} repeats {item.template!r}")
                seen.add(item.template)
        return self

    def for_concept(
        self, kind: str, class_word: str, *, per_category: int | None = None, without_concept: int | None = None
    ) -> tuple[Prompt, ...]:
        """The prompts for a concept of that kind, in the order of the file.

        Args:
            per_category: of the prompts with the concept, take the first so many of each category; None: all.
            without_concept: take the first so many of the prompts without the concept; None: all.

        Raises:
            InvalidInput: the set has no prompt with, or none without, a concept of that kind.
        """
        prompts: list[Prompt] = []
        taken = 0
        for category, items in self.categories.items():
            usable = [item for item in items if item.needs in ("any", kind)]
            chosen = [item for item in usable if item.has_concept][:per_category]
            plain = [item for item in usable if not item.has_concept]
            chosen += plain if without_concept is None else plain[: max(0, without_concept - taken)]
            taken += sum(not item.has_concept for item in chosen)
            for item in (item for item in usable if item in chosen):
                prompts.append(_fill(item, len(prompts), category, class_word))
        for wanted, what in ((True, "with"), (False, "without")):
            if not any(prompt.has_concept is wanted for prompt in prompts):
                raise InvalidInput(
                    f"prompt set {self.name!r} has no prompt {what} a concept of kind {kind!r}",
                    field="categories",
                    mend="add templates with {concept} (instances), {style} (styles), and plain ones",
                )
        return tuple(prompts)


def _fill(item: _Item, index: int, category: str, class_word: str) -> Prompt:
    def text(concept: str, style: str) -> str:
        return (
            item.template.replace("{concept}", concept).replace("{style}", style).replace("{class}", class_word).strip()
        )

    return Prompt(
        index=index,
        category=category,
        complete=text(f"{IDENTIFIER} {class_word}", f", in {IDENTIFIER} style"),
        base=text(class_word, ""),
        has_concept=item.has_concept,
        expect={name: value.replace("{class}", class_word) for name, value in item.expect.items()},
    )


def load_prompts(file: Path) -> PromptSet:
    """Read and check a prompt set.

    Raises:
        InvalidInput: not a file, not YAML, or not of the schema above; the field is named.
    """
    if not file.is_file():
        raise InvalidInput("no such prompt set", file=file, mend="name a YAML file in evaluation.prompts")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not YAML: {error}", file=file) from error
    try:
        return PromptSet.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(first["msg"], file=file, field=where or None, mend="correct the prompt set") from error
