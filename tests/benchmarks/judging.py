"""Pictures a second of each evaluator, beside drawing one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from measuring import Case, Row, clock, interleaved, rows
from training import COMPLETE, Bench

from components.evaluation import fidelity, preservation
from components.evaluation.evaluators import load_evaluators
from components.evaluation.pictures import to_pictures
from components.evaluation.segmentation import paint, seg_cons
from components.settings import Profile, project_root


def measure(folder: Path, profile: Profile, rounds: int, least: float, count: int) -> list[Row]:
    """Each evaluator on the same `count` pictures of the base."""
    bench = Bench(folder, profile)
    backbone, sampling = bench.backbone, profile.evaluation.sampling
    judges = load_evaluators(profile.evaluation.evaluators, project_root(), backbone.device)

    def draw(size: int) -> torch.Tensor:
        text = [COMPLETE.replace("[V] ", "")] * size
        return backbone.sample(
            backbone.encode_text(text),
            backbone.encode_text([""] * size),
            seeds=range(size),
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            adapter=None,
        )

    pictures = to_pictures(draw(min(count, sampling.batch_size)))
    pictures = [pictures[index % len(pictures)] for index in range(count)]
    texts = [f"a star, number {index}" for index in range(count)]
    layouts = fidelity.find_layouts(pictures, judges.segmenter, judges.clip, "star")
    partitions = [paint([segment.mask for segment in each.segments], each.foreground.shape) for each in layouts]
    features = {"dino": judges.dino.encode_images(pictures)}
    cases: dict[str, Case] = {
        "drawing": lambda: draw(count),
        "clip_i (images)": lambda: judges.clip.encode_images(pictures),
        "clip_t (texts)": lambda: judges.clip.encode_texts(texts),
        "dino": lambda: judges.dino.encode_images(pictures),
        "segments": lambda: judges.segmenter.segments(pictures),
        "subjects (segments and CLIP)": lambda: fidelity.find_layouts(pictures, judges.segmenter, judges.clip, "star"),
        "seg_cons": lambda: [seg_cons(one, other) for one, other in zip(partitions, partitions[::-1], strict=True)],
        "distance": lambda: [preservation.pixel_distance(one, pictures[0]) for one in pictures],
        "dino distance": lambda: preservation.cosine_distance(features["dino"], np.roll(features["dino"], 1, axis=0)),
    }
    if judges.style is not None:
        style = judges.style
        cases["csd"] = lambda: style.encode_images(pictures)
    if judges.oracle is not None:
        oracle = judges.oracle
        cases["oracle"] = lambda: preservation.judge(oracle, pictures)
    for name, scorer in judges.preferences.items():
        cases[name] = lambda scorer=scorer: scorer.score(pictures, texts)
    seconds = interleaved(cases, rounds, clock(backbone.device), least=least)
    return rows("evaluation", seconds, "drawing", items=count)
