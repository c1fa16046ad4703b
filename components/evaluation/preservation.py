"""Preservation: what the customized model kept of the original one, on same-seed pairs of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from components.errors import InvalidInput
from components.evaluation.encoders import Features
from components.evaluation.pictures import Picture, to_tensor
from components.evaluation.prompts import Prompt
from components.evaluation.segmenters import Mask

Values = NDArray[np.float64]
"""(N,): one value per picture pair, NaN where the metric says nothing about that pair."""

BACKGROUND = "background"


class Oracle(Protocol):
    """A judge of pictures' attributes: images are (B, 3, H, W) in [-1, 1]."""

    @property
    def labels(self) -> Mapping[str, Sequence[str]]: ...

    def probabilities(self, images_BCHW: Any) -> Mapping[str, Any]:
        """Attribute -> (B, labels), a distribution over the labels for each image."""
        ...


def clip_t(images_ND: Features, texts_ND: Features) -> Values:
    """(N,): 100 x the cosine of each picture and its own text. Rows are unit vectors."""
    return cast(Values, 100 * (images_ND * texts_ND).sum(axis=1))


def cosine_distance(first_ND: Features, second_ND: Features) -> Values:
    """(N,): 1 - cosine of each pair. Rows are unit vectors."""
    return cast(Values, 1 - (first_ND * second_ND).sum(axis=1))


def pixel_distance(first: Picture, second: Picture, within: Mask | None = None) -> float:
    """Mean absolute difference of two pictures, in [0, 1]; over the pixels of `within` only, if given.

    NaN if `within` holds no pixel.
    """
    difference = np.abs(first.astype(np.float64) - second.astype(np.float64)) / 255
    chosen = difference if within is None else difference[within]
    return float(chosen.mean()) if chosen.size else float("nan")


@dataclass(frozen=True)
class Verdict:
    """What an oracle says of N pictures.

    Attributes:
        labels: attribute -> its labels.
        probabilities: attribute -> (N, labels).
    """

    labels: Mapping[str, Sequence[str]]
    probabilities: Mapping[str, Values]

    @property
    def predicted(self) -> dict[str, list[str]]:
        """Attribute -> the most probable label of each picture."""
        return {
            attribute: [self.labels[attribute][index] for index in table.argmax(axis=1)]
            for attribute, table in self.probabilities.items()
        }


def judge(oracle: Oracle, pictures: Sequence[Picture], batch_size: int = 64) -> Verdict:
    """The oracle's verdict on the pictures, in batches."""
    parts = [
        oracle.probabilities(to_tensor(pictures[start : start + batch_size]))
        for start in range(0, len(pictures), batch_size)
    ]
    return Verdict(
        oracle.labels,
        {name: np.concatenate([np.asarray(part[name], dtype=np.float64) for part in parts]) for name in oracle.labels},
    )


def check_expectations(oracle: Oracle, prompts: Sequence[Prompt]) -> None:
    """Every expectation is one that the oracle can judge.

    Raises:
        InvalidInput: an attribute or a label that it does not know.
    """
    for prompt in prompts:
        for attribute, label in prompt.expect.items():
            known = oracle.labels.get(attribute, ())
            if label not in known:
                choice = f"known labels: {', '.join(known)}" if known else f"attributes: {', '.join(oracle.labels)}"
                raise InvalidInput(
                    f"{prompt.base!r} expects {attribute} {label!r}, which the oracle does not know",
                    field=f"categories.{prompt.category}",
                    mend=f"{choice}; or take prompts that expect nothing: "
                    "--set evaluation.prompts=profiles/prompts/subjects.yaml",
                )


def correctness(predicted: Mapping[str, Sequence[str]], prompts: Sequence[Prompt]) -> dict[str, Values]:
    """Attribute -> (N,): 1 where a picture shows what its prompt asks for, 0 where not, NaN where nothing is asked."""
    attributes = sorted({attribute for prompt in prompts for attribute in prompt.expect})
    return {
        attribute: np.array(
            [
                float(predicted[attribute][index] == prompt.expect[attribute])
                if attribute in prompt.expect
                else float("nan")
                for index, prompt in enumerate(prompts)
            ]
        )
        for attribute in attributes
    }


def mean_over_attributes(correct: Mapping[str, Values]) -> Values:
    """(N,): the share of what was asked for that each picture shows, NaN where nothing is asked."""
    table_AN = np.stack([correct[attribute] for attribute in sorted(correct)])
    asked_N = (~np.isnan(table_AN)).sum(axis=0)
    return np.where(asked_N > 0, np.nansum(table_AN, axis=0) / np.maximum(asked_N, 1), np.nan)


def majority(labels: Sequence[str]) -> str | None:
    """The label of more than half; None if there is none."""
    if not labels:
        return None
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None


def leakage(predicted: Mapping[str, Sequence[str]], prompts: Sequence[Prompt], background: str) -> Values:
    """(N,): 1 where the references' background stands in place of the one asked for; NaN where it is itself asked for,
    or none is."""
    return np.array(
        [
            float(predicted[BACKGROUND][index] == background)
            if prompt.expect.get(BACKGROUND, background) != background
            else float("nan")
            for index, prompt in enumerate(prompts)
        ]
    )
