"""All metrics of one set of same-seed pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.concepts.concept import Concept
from components.evaluation import fidelity, leakage, preservation
from components.evaluation.divergence import MINIMUM_SAMPLES, gaussian_kl
from components.evaluation.evaluators import Evaluators
from components.evaluation.fidelity import Layout
from components.evaluation.pictures import Picture
from components.evaluation.prompts import Prompt
from components.evaluation.sampling import Sample
from components.evaluation.segmentation import Partition, paint, seg_cons

Values = NDArray[np.float64]

_NO_NAME = frozenset({"none", "unnamed"})
"""Labels by which an oracle says that it has no name for a look or style."""
_OTHER_LOOK = frozenset({"colour change", "style"})
"""Categories of prompts that ask for another look."""
_SHAPE = "shape"
"""What a prompt expects of its one object: the oracle judges pictures of one object only."""


@dataclass
class Measurement:
    """All metrics of one set of samples: metric -> one value per sample, NaN where it does not apply."""

    judges: Evaluators
    concept: Concept
    samples: Sequence[Sample]
    references: Sequence[Picture]

    def __post_init__(self) -> None:
        self.prompts: list[Prompt] = [sample.prompt for sample in self.samples]
        self.has_concept = np.array([prompt.has_concept for prompt in self.prompts])
        self.pictures = {
            "custom": [sample.custom for sample in self.samples],
            "original": [sample.original for sample in self.samples],
            "floor": [sample.floor for sample in self.samples],
        }
        self.partitions: dict[str, list[Partition]] = {}

    def values(self) -> tuple[dict[str, Values], dict[str, float]]:
        """Metrics per sample, and metrics of the whole set."""
        clip = {name: self.judges.clip.encode_images(pictures) for name, pictures in self.pictures.items()}
        dino = {name: self.judges.dino.encode_images(pictures) for name, pictures in self.pictures.items()}
        layouts = {name: self._layouts(pictures) for name, pictures in self.pictures.items()}
        layouts["references"] = self._layouts(self.references)
        for name in self.pictures:
            found = layouts[name]
            self.partitions[name] = [
                paint([segment.mask for segment in layout.segments], layout.foreground.shape) for layout in found
            ]
        values: dict[str, Values] = {}
        single: dict[str, float] = {}
        self._fidelity(values, single, clip, dino, layouts)
        self._texts(values, clip)
        self._regions(values, layouts)
        self._prior(values, clip, dino)
        self._leakage(values, layouts)
        self._oracle(values)
        if len(self.samples) >= MINIMUM_SAMPLES:
            single["preservation/kl"] = gaussian_kl(dino["custom"], dino["original"])
            single["preservation/kl_floor"] = gaussian_kl(dino["floor"], dino["original"])
        return values, single

    def _layouts(self, pictures: Sequence[Picture]) -> list[Layout]:
        return fidelity.find_layouts(pictures, self.judges.segmenter, self.judges.clip, self.concept.class_word)

    def _where(self, values: Values, with_concept: bool) -> Values:
        return np.where(self.has_concept == with_concept, values, np.nan)

    def _fidelity(
        self,
        values: dict[str, Values],
        single: dict[str, float],
        clip: Mapping[str, Values],
        dino: Mapping[str, Values],
        layouts: Mapping[str, Sequence[Layout]],
    ) -> None:
        encoders: list[tuple[str, Any, Mapping[str, Values]]] = [
            ("clip_i", self.judges.clip, clip),
            ("dino", self.judges.dino, dino),
        ]
        if self.judges.style is not None and self.concept.kind == "style":
            style = {name: self.judges.style.encode_images(self.pictures[name]) for name in ("custom", "original")}
            encoders.append(("csd", self.judges.style, style))
        masked = self.concept.kind == "instance"
        reference_subjects = fidelity.subjects(self.references, layouts["references"]) if masked else []
        subjects = {
            which: fidelity.subjects(self.pictures[which], layouts[which]) if masked else []
            for which in ("custom", "original")
        }
        for name, encoder, features in encoders:
            references_MD = encoder.encode_images(self.references)
            among = fidelity.cosine_among(references_MD)
            if among is not None:
                single[f"fidelity/{name}_references"] = among
            for which, suffix in (("custom", ""), ("original", "_original")):
                cosine = fidelity.cosine_to_references(features[which], references_MD)
                values[f"fidelity/{name}{suffix}"] = self._where(cosine, True)
            if masked:
                subjects_MD = encoder.encode_images(reference_subjects)
                among = fidelity.cosine_among(subjects_MD)
                if among is not None:
                    single[f"fidelity/{name}_masked_references"] = among
                for which, suffix in (("custom", ""), ("original", "_original")):
                    cosine = fidelity.cosine_to_references(encoder.encode_images(subjects[which]), subjects_MD)
                    values[f"fidelity/{name}_masked{suffix}"] = self._where(cosine, True)
        if masked:
            found = np.array([float(layout.subject is not None) for layout in layouts["custom"]])
            values["fidelity/subject_found"] = self._where(found, True)

    def _texts(self, values: dict[str, Values], clip: Mapping[str, Values]) -> None:
        """Scores of the pictures against the base text: CLIP-T and the preference models."""
        texts = [prompt.base for prompt in self.prompts]
        texts_ND = self.judges.clip.encode_texts(texts)
        scores = {"clip_t": {name: preservation.clip_t(clip[name], texts_ND) for name in ("custom", "original")}}
        for name, scorer in self.judges.preferences.items():
            scores[name] = {which: scorer.score(self.pictures[which], texts) for which in ("custom", "original")}
        for name, score in scores.items():
            delta = score["custom"] - score["original"]
            values[f"preservation/{name}_delta"] = self._where(delta, True)
            values[f"preservation/prior_{name}_delta"] = self._where(delta, False)

    def _regions(self, values: dict[str, Values], layouts: Mapping[str, Sequence[Layout]]) -> None:
        """Seg-Cons, and the distance outside the objects, against the same seed and, as the floor, another."""
        instance = self.concept.kind == "instance"
        for which, suffix in (("custom", ""), ("floor", "_floor")):
            whole, background, outside = [], [], []
            for index, sample in enumerate(self.samples):
                first, second = self.partitions[which][index], self.partitions["original"][index]
                rest = ~(layouts[which][index].foreground | layouts["original"][index].foreground)
                whole.append(seg_cons(first, second))
                background.append(seg_cons(first, second, within=rest) if rest.any() else np.nan)
                outside.append(preservation.pixel_distance(self.pictures[which][index], sample.original, within=rest))
            values[f"preservation/seg_cons{suffix}"] = self._where(np.array(whole), True)
            values[f"preservation/prior_seg_cons{suffix}"] = self._where(np.array(whole), False)
            values[f"preservation/seg_cons_background{suffix}"] = self._where(np.array(background), True)
            if instance:  # a style is meant to change the whole picture
                values[f"preservation/outside_distance{suffix}"] = self._where(np.array(outside), True)

    def _prior(self, values: dict[str, Values], clip: Mapping[str, Values], dino: Mapping[str, Values]) -> None:
        """Distances to the original model's picture on prompts without the concept."""
        for which, suffix in (("custom", ""), ("floor", "_floor")):
            pixels = np.array(
                [
                    preservation.pixel_distance(picture, sample.original)
                    for picture, sample in zip(self.pictures[which], self.samples, strict=True)
                ]
            )
            values[f"preservation/prior_distance{suffix}"] = self._where(pixels, False)
            for name, features in (("dino", dino), ("clip", clip)):
                distance = preservation.cosine_distance(features[which], features["original"])
                values[f"preservation/prior_{name}_distance{suffix}"] = self._where(distance, False)

    def _leakage(self, values: dict[str, Values], layouts: Mapping[str, Sequence[Layout]]) -> None:
        """What of the references' background stands where the prompt asks for another: by area, and in features."""
        if self.concept.kind != "instance":  # a style's references share no background
            return
        background = leakage.common_background(layouts["references"])
        asked = leakage.asks_for_another(self.prompts, background)
        for which, suffix in (("custom", ""), ("original", "_original")):
            if background is not None:
                shares = leakage.background_share(layouts[which], background)
                values[f"preservation/background_leakage_area{suffix}"] = np.where(asked, shares, np.nan)
            similarity = leakage.background_similarity(
                self.judges.dino, self.pictures[which], layouts[which], self.references, layouts["references"]
            )
            values[f"preservation/background_similarity{suffix}"] = np.where(asked, similarity, np.nan)

    def _oracle(self, values: dict[str, Values]) -> None:
        """What the pictures show of what was asked for, and whether the references' background came along."""
        oracle = self.judges.oracle
        if oracle is None or not any(prompt.expect for prompt in self.prompts):
            return
        verdicts = {which: preservation.judge(oracle, self.pictures[which]) for which in ("custom", "original")}
        predicted = {which: verdict.predicted for which, verdict in verdicts.items()}
        correct = {which: preservation.correctness(labels, self.prompts) for which, labels in predicted.items()}
        overall = {which: preservation.mean_over_attributes(table) for which, table in correct.items()}
        for with_concept, prefix in ((True, ""), (False, "prior_")):
            values[f"preservation/{prefix}accuracy"] = self._where(overall["custom"], with_concept)
            values[f"preservation/{prefix}accuracy_original"] = self._where(overall["original"], with_concept)
            delta = overall["custom"] - overall["original"]
            values[f"preservation/{prefix}accuracy_delta"] = self._where(delta, with_concept)
            for attribute in correct["custom"]:
                delta = correct["custom"][attribute] - correct["original"][attribute]
                values[f"preservation/{prefix}accuracy_delta/{attribute}"] = self._where(delta, with_concept)
        references = preservation.judge(oracle, self.references).predicted
        background = preservation.majority(references.get(preservation.BACKGROUND, ()))
        if background is not None:
            for which, suffix in (("custom", ""), ("original", "_original")):
                leaked = preservation.leakage(predicted[which], self.prompts, background)
                values[f"preservation/background_leakage{suffix}"] = self._where(leaked, True)
        self._recognition(values, verdicts, references)

    def _recognition(
        self,
        values: dict[str, Values],
        verdicts: Mapping[str, preservation.Verdict],
        references: Mapping[str, Sequence[str]],
    ) -> None:
        """Whether the oracle sees in a picture the look (or style) that it sees in most references."""
        attribute = "style" if self.concept.kind == "style" else "look"
        label = preservation.majority(references.get(attribute, ()))
        if label is None or label in _NO_NAME:
            return
        asked = np.array(
            [
                attribute == "style" or (_SHAPE in prompt.expect and prompt.category not in _OTHER_LOOK)
                for prompt in self.prompts
            ]
        )
        for which, suffix in (("custom", ""), ("original", "_original")):
            table_NK = verdicts[which].probabilities[attribute]
            place = list(verdicts[which].labels[attribute]).index(label)
            for name, column in (
                ("recognised", (table_NK.argmax(axis=1) == place).astype(np.float64)),
                ("recognised_probability", table_NK[:, place]),
            ):
                values[f"fidelity/{name}{suffix}"] = self._where(np.where(asked, column, np.nan), True)
