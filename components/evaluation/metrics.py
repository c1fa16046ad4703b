"""What each metric means: the words of the report, and the values it is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "zero"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: its short name.
        text: what it says, in one or two sentences.
        better: which way is good; `zero`: 0 is untouched.
        low: suffix of the metric that is the value of an untouched model or of chance, if there is one.
        high: the value of a perfect result: a suffix of a metric, or a number.
    """

    label: str
    text: str
    better: Better
    low: str | None = None
    high: str | float | None = None


METRICS: dict[str, Metric] = {
    "fidelity/clip_i": Metric(
        "CLIP-I",
        "Mean CLIP cosine of every generated and every reference picture.",
        "higher",
        "_original",
        "_references",
    ),
    "fidelity/dino": Metric(
        "DINO", "The same in DINO features, which see identity better.", "higher", "_original", "_references"
    ),
    "fidelity/csd": Metric(
        "CSD", "The same in the features of a style encoder, for styles.", "higher", "_original", "_references"
    ),
    "fidelity/clip_i_masked": Metric(
        "CLIP-I, subject",
        "CLIP-I on the cut-out subject: copying the references' background does not help.",
        "higher",
        "_original",
        "_references",
    ),
    "fidelity/dino_masked": Metric(
        "DINO, subject", "DINO on the cut-out subject.", "higher", "_original", "_references"
    ),
    "fidelity/subject_found": Metric(
        "Subject found", "Share of pictures in which the segmenter finds a subject.", "higher", None, 1.0
    ),
    "fidelity/recognised": Metric(
        "Recognised",
        "Share of pictures in which the oracle sees the references' look or style, of all that it knows.",
        "higher",
        "_original",
        1.0,
    ),
    "fidelity/recognised_probability": Metric(
        "Recognised, probability", "The probability that the oracle gives to it.", "higher", "_original", 1.0
    ),
    "preservation/clip_t_delta": Metric(
        "CLIP-T difference",
        "CLIP-T (cosine with the base text, x 100) of the customized picture less the original's, same seed.",
        "higher",
    ),
    "preservation/hps_delta": Metric("HPSv2.1 difference", "The same with a preference model as score.", "higher"),
    "preservation/pickscore_delta": Metric("PickScore difference", "The same with PickScore.", "higher"),
    "preservation/seg_cons": Metric(
        "Seg-Cons",
        "How alike the pair is cut into regions, 0 to 100. The floor is the same prompt from another seed.",
        "higher",
        "_floor",
        100.0,
    ),
    "preservation/seg_cons_background": Metric(
        "Seg-Cons, background", "Seg-Cons outside the objects of both pictures.", "higher", "_floor", 100.0
    ),
    "preservation/outside_distance": Metric(
        "Distance outside the objects",
        "Mean absolute pixel difference to the original outside the objects of both, 0 to 1.",
        "lower",
        "_floor",
        0.0,
    ),
    "preservation/background_leakage": Metric(
        "Background leakage",
        "Share of pictures that show the references' background where the prompt asks for another.",
        "lower",
        "_original",
        0.0,
    ),
    "preservation/background_leakage_area": Metric(
        "Background leakage, area",
        "Share of the background that the segmenter sees as the references', where the prompt asks for another.",
        "lower",
        "_original",
        0.0,
    ),
    "preservation/background_similarity": Metric(
        "Background likeness",
        "Mean DINO cosine to the references, objects painted over, where the prompt asks for another background.",
        "lower",
        "_original",
    ),
    "preservation/accuracy": Metric(
        "Prompt accuracy",
        "Share of what the prompt asks for (background, position, ...) that the oracle sees.",
        "higher",
        "_original",
        1.0,
    ),
    "preservation/accuracy_delta": Metric(
        "Prompt accuracy difference", "Prompt accuracy less that of the original model, same seed.", "higher"
    ),
    "preservation/kl": Metric(
        "KL to the original",
        "KL divergence of Gaussians fitted to the DINO features of both models' pictures, of all prompts, "
        "in nats (shrunk covariances; biased upward for few pictures). The floor compares two seeds of the original.",
        "lower",
        "_floor",
        0.0,
    ),
    "preservation/prior_distance": Metric(
        "Pixel distance", "Mean absolute pixel difference to the original, 0 to 1.", "lower", "_floor", 0.0
    ),
    "preservation/prior_dino_distance": Metric(
        "DINO distance", "1 - cosine of the pair in DINO features.", "lower", "_floor", 0.0
    ),
    "preservation/prior_clip_distance": Metric(
        "CLIP distance", "1 - cosine of the pair in CLIP features.", "lower", "_floor", 0.0
    ),
    "preservation/prior_seg_cons": Metric("Seg-Cons", "How alike the pair is cut.", "higher", "_floor", 100.0),
    "preservation/prior_clip_t_delta": Metric(
        "CLIP-T difference", "CLIP-T of the customized picture less the original's.", "higher"
    ),
    "preservation/prior_hps_delta": Metric("HPSv2.1 difference", "The same with HPSv2.1.", "higher"),
    "preservation/prior_pickscore_delta": Metric("PickScore difference", "The same with PickScore.", "higher"),
    "preservation/prior_accuracy": Metric(
        "Prompt accuracy", "Share of what the prompt asks for that the oracle sees.", "higher", "_original", 1.0
    ),
    "preservation/prior_accuracy_delta": Metric(
        "Prompt accuracy difference", "Prompt accuracy less that of the original model.", "higher"
    ),
}
"""Metric key -> its meaning. Keys with a suffix in `low` or `high` belong to the metric without it."""

GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Fidelity to the concept",
        "Is it the concept? The original model, which never saw it, is the low mark; the references are the high one.",
        tuple(key for key in METRICS if key.startswith("fidelity/")),
    ),
    (
        "Preservation on prompts with the concept",
        "Apart from the concept, is it the picture that the original model would have drawn from the same seed?",
        tuple(key for key in METRICS if key.startswith("preservation/") and "/prior_" not in key),
    ),
    (
        "Preservation on prompts without the concept",
        "Does the model still draw everything else as before?",
        tuple(key for key in METRICS if "/prior_" in key),
    ),
)
