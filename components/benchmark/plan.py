"""What a benchmark compares: variants of the settings over concepts and seeds, each at several steps of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import InvalidInput


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Strict):
    """One method with its settings; a plan may write just the list of settings.

    Attributes:
        settings: `KEY=VALUE` over the plan's.
        seeds, steps, scales: instead of the plan's.
    """

    settings: list[str] = []
    seeds: list[int] | None = Field(None, min_length=1)
    steps: list[int] | None = Field(None, min_length=1)
    scales: list[float] | None = Field(None, min_length=1)


class Plan(_Strict):
    """A benchmark.

    Attributes:
        profile: name of the profile.
        concepts: folders under `data/concepts`.
        seeds: of the trainings and the images.
        steps: of the last training stage, at each of which the adapter is kept and evaluated.
        scales: how strongly the adapter of the last step acts at inference; 1 is as trained, and always measured.
        settings: `KEY=VALUE` over the profile's, for every variant.
        variants: title -> what is particular to it; a title is the `method` of the table.
        baseline: the variant that the others are tested against; None: the first.
        sensitivities: setting -> value -> the variant that has it, for plots of one setting.
    """

    profile: str = "tiny"
    concepts: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    steps: list[int] = Field(min_length=1)
    scales: list[float] = [1.0]
    settings: list[str] = []
    variants: dict[str, Variant] = Field(min_length=1)
    baseline: str | None = None
    sensitivities: dict[str, dict[float, str]] = {}

    @field_validator("variants", mode="before")
    @classmethod
    def _bare_lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"settings": item or []} if isinstance(item, list | None) else item for name, item in value.items()
        }

    @field_validator("variants")
    @classmethod
    def _titles(cls, value: dict[str, Variant]) -> dict[str, Variant]:
        if split := [title for title in value if "," in title]:
            raise ValueError(f"{split[0]!r} has a comma, at which --methods splits names: take another title")
        return value

    @model_validator(mode="after")
    def _known(self) -> Plan:
        named = [self.baseline] if self.baseline else []
        named += [title for points in self.sensitivities.values() for title in points.values()]
        if unknown := [title for title in named if title not in self.variants]:
            raise ValueError(f"{unknown[0]!r} is not a variant of the plan")
        return self

    @field_validator("steps")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)) or value[0] < 1:
            raise ValueError("steps rise from 1 on, none twice")
        return value

    def cells(self) -> Iterator[Cell]:
        """Every training of the plan: all variants of one concept and seed follow each other."""
        for concept in self.concepts:
            every = sorted({seed for item in self.variants.values() for seed in item.seeds or self.seeds})
            for seed in every:
                for title, variant in self.variants.items():
                    if seed in (variant.seeds or self.seeds):
                        yield Cell(
                            title,
                            concept,
                            seed,
                            tuple(variant.steps or self.steps),
                            tuple(dict.fromkeys([1.0, *(variant.scales or self.scales)])),
                            (*self.settings, *variant.settings),
                        )

    def with_settings(self, *settings: str) -> Plan:
        """The plan with more settings for every variant, which win over its own."""
        variants = {
            name: item.model_copy(update={"settings": [*item.settings, *settings]})
            for name, item in self.variants.items()
        }
        return self.model_copy(update={"variants": variants})

    def only(self, *, variants: Sequence[str] = (), concepts: Sequence[str] = (), seeds: Sequence[int] = ()) -> Plan:
        """The part of the plan with these variants, on these concepts with these seeds; empty: as the plan says.

        Raises:
            InvalidInput: a variant is not in the plan.
        """
        if unknown := [name for name in variants if name not in self.variants]:
            mend = f"one of {', '.join(self.variants)}"
            raise InvalidInput(f"{unknown[0]!r} is not in the plan", field="--methods", mend=mend)
        kept = {name: item for name, item in self.variants.items() if not variants or name in variants}
        if seeds:
            kept = {name: item.model_copy(update={"seeds": list(seeds)}) for name, item in kept.items()}
        varied = {
            setting: {value: title for value, title in points.items() if title in kept}
            for setting, points in self.sensitivities.items()
        }
        return self.model_copy(
            update={
                "variants": kept,
                "concepts": list(concepts) or self.concepts,
                "seeds": list(seeds) or self.seeds,
                "baseline": self.baseline if self.baseline in kept else None,
                "sensitivities": {setting: points for setting, points in varied.items() if len(points) > 1},
            }
        )


@dataclass(frozen=True)
class Cell:
    """One training: a variant on a concept with a seed.

    Attributes:
        steps: at which its adapter is evaluated; the last is its length.
        scales: of the adapter at inference, at the last step; 1 first.
        settings: `KEY=VALUE` over the profile's.
    """

    variant: str
    concept: str
    seed: int
    steps: tuple[int, ...]
    scales: tuple[float, ...]
    settings: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.variant} {self.concept} seed {self.seed}"

    @property
    def overrides(self) -> list[str]:
        """All settings of the training, the ones that the plan itself sets last."""
        return [
            *self.settings,
            f"seed={self.seed}",
            f"learning.pure.steps={self.steps[-1]}",
            f"learning.snapshot_steps={list(self.steps[:-1])}",
        ]


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        InvalidInput: no file, not YAML, or a field is wrong.
    """
    try:
        return Plan.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidInput("no such plan", file=file, mend="name a YAML file as in profiles/benchmarks") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not YAML: {error}", file=file) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(first["msg"], file=file, field=".".join(map(str, first["loc"]))) from error
