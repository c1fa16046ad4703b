"""Several concepts acting together: does each still appear, and do the others bleed in?

A group is a pair of concepts, or all of them. Every concept of a group is drawn by its own adapter and by the group's
composition, from the same noise. `loss` says how much of the likeness to its references it loses in company, `bleed`
how much more alike to another concept's references it becomes. Pairs are also drawn in one prompt that names both: an
instance beside an instance, or an instance in a style.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.backbones.composition import How, compose
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.concepts.images import load_image
from components.evaluation import fidelity
from components.evaluation.encoders import ImageEncoder
from components.evaluation.evaluators import Evaluators
from components.evaluation.pictures import Picture, to_pictures
from components.evaluation.preservation import pixel_distance
from components.evaluation.sampling import Request, draw
from components.settings import SamplingSettings

_NAME = "together"


@dataclass(frozen=True)
class Presence:
    """One concept in a group.

    Attributes:
        alone: mean cosine of its pictures, drawn by its own adapter, to its references.
        together: the same, drawn by the group's composition.
        bleed: the largest gain in likeness to another concept of the group; 0 where there is none.
        joint: its likeness in the prompt that names the whole pair; None where there is no such prompt.
        joint_untouched: the same of the original model, which knows neither: what chance gives.
    """

    group: tuple[str, ...]
    concept: str
    alone: float
    together: float
    bleed: float
    joint: float | None = None
    joint_untouched: float | None = None

    @property
    def loss(self) -> float:
        """Likeness lost in company; negative where it grew."""
        return self.alone - self.together

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "group": list(self.group), "loss": self.loss}


@dataclass(frozen=True)
class TogetherResult:
    """What was found.

    Attributes:
        prior_distance: mean pixel distance of all together from the original model on texts without a concept.
    """

    presences: tuple[Presence, ...]
    prior_distance: float
    how: str

    @property
    def metrics(self) -> dict[str, float]:
        """Keys as MLflow gets them; the worst and the mean over groups and concepts."""
        if not self.presences:
            return {}
        losses = [presence.loss for presence in self.presences]
        bleeds = [presence.bleed for presence in self.presences]
        found = {
            "together/loss_mean": float(np.mean(losses)),
            "together/loss_max": float(np.max(losses)),
            "together/bleed_mean": float(np.mean(bleeds)),
            "together/bleed_max": float(np.max(bleeds)),
            "together/prior_distance": self.prior_distance,
        }
        gains = [
            presence.joint - presence.joint_untouched
            for presence in self.presences
            if presence.joint is not None and presence.joint_untouched is not None
        ]
        if gains:
            found |= {
                "together/joint_gain_mean": float(np.mean(gains)),
                "together/joint_gain_min": float(np.min(gains)),
            }
        return found

    def refusal(self, *, maximum_loss: float | None, maximum_bleed: float | None) -> str:
        """Why the concepts do not stand together; empty if they do, or if no two were drawn. NaN passes no bound."""
        bounds = {"together/loss_max": maximum_loss, "together/bleed_max": maximum_bleed}
        metrics = self.metrics
        return "; ".join(
            f"{metric} = {metrics[metric]:g}, needs <= {bound:g}"
            for metric, bound in bounds.items()
            if metric in metrics and bound is not None and not metrics[metric] <= bound
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "how": self.how,
            "metrics": self.metrics,
            "presences": [presence.to_json() for presence in self.presences],
        }


def groups_of(names: Sequence[str], maximum_pairs: int) -> list[tuple[str, ...]]:
    """Pairs, and all together if that is more than a pair.

    Of more pairs than the maximum the nearest in a ring of the names are taken, so that every concept has as many as
    the others.
    """
    count = len(names)
    pairs = sorted(
        itertools.combinations(range(count), 2),
        key=lambda pair: (min(pair[1] - pair[0], count - pair[1] + pair[0]), pair),
    )
    chosen = [(names[first], names[second]) for first, second in pairs[:maximum_pairs]]
    return [*chosen, *([tuple(names)] if count > 2 else [])]


def joint_prompt(first: Concept, second: Concept) -> str | None:
    """A text that names both: side by side, or an instance in a style; None for two styles."""
    if first.kind == second.kind == "style":
        return None
    if "style" in (first.kind, second.kind):
        style, thing = (first, second) if first.kind == "style" else (second, first)
        return f"a <{thing.name}> {thing.class_word}, in <{style.name}> style"
    return f"a <{first.name}> {first.class_word} on the left and a <{second.name}> {second.class_word} on the right"


def seed_of(seed: int, index: int) -> int:
    """The seed of a picture; the same for every prompt and group, so that what differs is the composition."""
    return int.from_bytes(hashlib.sha256(f"{seed}|together|{index}".encode()).digest()[:4], "big") & 0x7FFFFFFF


@dataclass(frozen=True)
class TogetherCheck:
    """The check over loaded adapters.

    Attributes:
        concepts: name of the loaded adapter, which is its concept's -> the concept.
        images: pictures per prompt.
    """

    backbone: SD3Backbone
    concepts: Mapping[str, Concept]
    judges: Evaluators
    sampling: SamplingSettings
    how: How
    images: int
    seed: int
    resolution: int

    @property
    def plain(self) -> str:
        """The text without a concept, on which styles are drawn."""
        words = [concept.class_word for concept in self.concepts.values() if concept.kind == "instance"]
        return f"a {words[0]}" if words else "a picture"

    def run(self, maximum_pairs: int) -> TogetherResult:
        """Draw and judge every group."""
        names = list(self.concepts)
        references = {name: self._features(name, self._references(name)) for name in names}
        alone = {name: self._draw(name, self._prompt(name)) for name in names}
        untouched = self._draw(None, self.plain)
        presences: list[Presence] = []
        prior = 0.0
        for group in groups_of(names, maximum_pairs):
            texts = {name: self._prompt(name) for name in group}
            compose(self.backbone, _NAME, list(group), self.how, texts=texts, seed=self.seed)
            try:
                presences += self._group(group, references, alone)
                if len(group) == len(names):
                    drawn = self._draw(_NAME, self.plain)
                    prior = float(np.mean([pixel_distance(a, b) for a, b in zip(drawn, untouched, strict=True)]))
            finally:
                self.backbone.remove_adapter(_NAME)
        return TogetherResult(tuple(presences), prior, self.how)

    def _group(
        self, group: tuple[str, ...], references: Mapping[str, NDArray[Any]], alone: Mapping[str, list[Picture]]
    ) -> list[Presence]:
        joint_pictures, joint_original = self._joint(group)
        found = []
        for name in group:
            pictures = self._draw(_NAME, self._prompt(name))
            others = [other for other in group if other != name]
            bleeds = [
                self._likeness(other, pictures, references) - self._likeness(other, alone[name], references)
                for other in others
            ]
            found.append(
                Presence(
                    group=group,
                    concept=name,
                    alone=self._likeness(name, alone[name], references),
                    together=self._likeness(name, pictures, references),
                    bleed=max(0.0, *bleeds),
                    joint=self._likeness(name, joint_pictures, references) if joint_pictures else None,
                    joint_untouched=self._likeness(name, joint_original, references) if joint_original else None,
                )
            )
        return found

    def _joint(self, group: tuple[str, ...]) -> tuple[list[Picture], list[Picture]]:
        prompt = joint_prompt(self.concepts[group[0]], self.concepts[group[1]]) if len(group) == 2 else None
        if prompt is None:
            return [], []
        return self._draw(_NAME, prompt), self._draw(None, prompt)

    def _prompt(self, name: str) -> str:
        concept = self.concepts[name]
        return f"{self.plain}, in <{name}> style" if concept.kind == "style" else f"a <{name}> {concept.class_word}"

    def _draw(self, adapter: str | None, prompt: str) -> list[Picture]:
        requests = [Request(prompt, seed_of(self.seed, index)) for index in range(self.images)]
        return draw(self.backbone, adapter, requests, self.sampling)

    def _references(self, name: str) -> list[Picture]:
        paths = [reference.path for reference in self.concepts[name].references]
        return [to_pictures(load_image(path, self.resolution)[None])[0] for path in paths]

    def _encoder(self, concept: Concept) -> ImageEncoder:
        return (self.judges.style or self.judges.clip) if concept.kind == "style" else self.judges.dino

    def _features(self, name: str, pictures: Sequence[Picture]) -> NDArray[Any]:
        concept = self.concepts[name]
        if concept.kind == "instance":
            layouts = fidelity.find_layouts(pictures, self.judges.segmenter, self.judges.clip, concept.class_word)
            pictures = fidelity.subjects(pictures, layouts)
        return self._encoder(concept).encode_images(pictures)

    def _likeness(self, name: str, pictures: Sequence[Picture], references: Mapping[str, NDArray[Any]]) -> float:
        return float(fidelity.cosine_to_references(self._features(name, pictures), references[name]).mean())
