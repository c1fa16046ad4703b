"""One adapter, evaluated: pictures, metrics and what the report shows."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.backbones.interface import Backbone
from components.concepts.concept import Concept
from components.concepts.images import load_image
from components.evaluation import preservation
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.evaluation.measurement import Measurement, Values
from components.evaluation.overlays import match_regions, overlay
from components.evaluation.pictures import Picture, to_pictures, write_png
from components.evaluation.prompts import load_prompts
from components.evaluation.result import EvaluationResult, summarise
from components.evaluation.sampling import Progress, Sample, draw_samples
from components.files import digest_of, sha256_file
from components.settings import Profile, project_root

_log = logging.getLogger(__name__)


def evaluate(
    backbone: Backbone,
    adapter: str,
    concept: Concept,
    profile: Profile,
    out_dir: Path,
    cache_dir: Path,
    *,
    adapter_digest: str | None = None,
    adapter_scale: float = 1.0,
    evaluators: Evaluators | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate an adapter that is loaded under the name `adapter`.

    Writes the pictures, the mask overlays and, last, `evaluation.json` into `out_dir`.

    Args:
        cache_dir: keeps the original model's pictures by digest, for every evaluation on that base.
        adapter_digest: digest of the adapter's folder; with it an interrupted evaluation resumes its pictures.
        adapter_scale: how strongly the adapter's LoRA and weight differences act, 1 being as trained.
        evaluators: loaded from the profile if not given.
        progress: told after each batch.

    Raises:
        InvalidInput: the prompt set or an evaluator is unusable, or the adapter has nothing to scale; nothing has been
            drawn by then.
    """
    root = project_root()
    prompt_file = root / profile.evaluation.prompts
    prompt_set = load_prompts(prompt_file)
    prompts = prompt_set.for_concept(
        concept.kind,
        concept.class_word,
        per_category=profile.evaluation.prompts_per_category,
        without_concept=profile.evaluation.prompts_without_concept,
    )
    judges = evaluators or load_evaluators(profile.evaluation.evaluators, root, backbone.device)
    if judges.oracle is not None:
        preservation.check_expectations(judges.oracle, prompts)
    identity = {"dtype": profile.base.dtype, "resolution": profile.base.resolution, "device": backbone.device.type}
    with _scaled(backbone, adapter, adapter_scale):
        samples = draw_samples(
            backbone,
            adapter,
            prompts,
            repetitions=profile.evaluation.seeds,
            profile_seed=profile.seed,
            sampling=profile.evaluation.sampling,
            cache_dir=cache_dir,
            identity=identity,
            adapter_digest=adapter_digest,
            adapter_scale=adapter_scale,
            progress=progress,
        )
    references = [
        to_pictures(load_image(reference.path, profile.base.resolution)[None])[0] for reference in concept.references
    ]
    _log.info("measuring %d pairs", len(samples))
    measurement = Measurement(judges, concept, samples, references)
    values, single = measurement.values()
    result = _result(samples, references, values, measurement, out_dir)
    result.metrics.update(single)
    result.evaluators = judges.info
    result.settings = {
        "prompts": {"name": prompt_set.name, "sha256": sha256_file(prompt_file), "count": len(prompts)},
        "repetitions": profile.evaluation.seeds,
        "seed": profile.seed,
        "sampling": profile.evaluation.sampling.model_dump(mode="json"),
        "base": {"fingerprint": backbone.fingerprint, **identity},
        "adapter": adapter_digest,
        "adapter_scale": adapter_scale,
        "references_sha256": digest_of([sha256_file(reference.path) for reference in concept.references]),
    }
    result.save(out_dir)
    if adapter_digest is not None:
        shutil.rmtree(cache_dir / "custom" / adapter_digest, ignore_errors=True)
    return result


@contextlib.contextmanager
def _scaled(backbone: Backbone, adapter: str, factor: float) -> Iterator[None]:
    if factor == 1:
        yield
        return
    backbone.scale_adapter(adapter, factor)
    try:
        yield
    finally:
        backbone.scale_adapter(adapter, 1.0)


def _result(
    samples: Sequence[Sample],
    references: Sequence[Picture],
    values: Mapping[str, Values],
    measurement: Measurement,
    out_dir: Path,
) -> EvaluationResult:
    """Rows and pictures of the result, written under `out_dir`."""
    rows: list[dict[str, Any]] = []
    for index, sample in enumerate(samples):
        name = f"{sample.prompt.index:04d}-{sample.repetition}.png"
        images = {which: f"images/{which}/{name}" for which in ("custom", "original", "floor")}
        for which, path in images.items():
            write_png(out_dir / path, getattr(sample, which))
        masks = {which: f"masks/{which}/{name}" for which in ("custom", "original")}
        original = measurement.partitions["original"][index]
        custom = match_regions(measurement.partitions["custom"][index], original)
        write_png(out_dir / masks["custom"], overlay(sample.custom, custom))
        write_png(out_dir / masks["original"], overlay(sample.original, original))
        rows.append(
            {
                "category": sample.prompt.category,
                "complete": sample.prompt.complete,
                "base": sample.prompt.base,
                "has_concept": sample.prompt.has_concept,
                "expect": dict(sample.prompt.expect),
                "repetition": sample.repetition,
                "seed": sample.seed,
                "images": images,
                "masks": masks,
                "values": {
                    metric: float(column[index]) for metric, column in values.items() if not np.isnan(column[index])
                },
            }
        )
    paths = [f"references/{index:02d}.png" for index in range(len(references))]
    for path, picture in zip(paths, references, strict=True):
        write_png(out_dir / path, picture)
    metrics, spread = summarise(rows)
    return EvaluationResult(metrics, rows, spread, paths, folder=out_dir)
