"""Fidelity-preservation curves of settings against each other, over training steps, concepts and seeds.

    python -m flows.curves docs/curves/lora-purecc.yaml

The file names the variants (settings over the profile's), concepts, seeds and the steps at which an adapter is kept and
evaluated. Each evaluated adapter is a row of the CSV beside the file; rows that are there are not measured again.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept, load_concept
from components.errors import InvalidInput
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.files import atomic_file
from components.learning.extractor import train_extractor
from components.learning.pure import train_pure
from components.learning.tracker import NullTracker
from components.settings import Profile, load_profile, project_root

logger = logging.getLogger(__name__)


class Plan(BaseModel):
    """What is compared."""

    model_config = ConfigDict(extra="forbid")
    profile: str = "tiny"
    concepts: list[str]
    seeds: list[int]
    steps: list[int]
    variants: dict[str, list[str]]


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        InvalidInput: no file, or a field is wrong.
    """
    try:
        return Plan.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidInput(str(error), file=file) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(first["msg"], file=file, field=".".join(map(str, first["loc"]))) from error


def snapshots(backbone: SD3Backbone, concept: Concept, profile: Profile, work: Path) -> Iterator[tuple[int, Path]]:
    """Train a variant; step -> adapter folder, of each kept step of its last stage."""
    extractor = None
    if profile.learning.method != "lora":
        first = profile.learning.extractor
        name = f"extractor-{first.trains}-{first.steps}-{profile.digest('seed', 'learning')[:12]}"
        extractor = train_extractor(backbone, concept, profile, work / name, NullTracker())
    last = train_pure(backbone, concept, profile, extractor, work / "pure", NullTracker())
    for step in profile.learning.snapshot_steps:
        yield step, work / "pure" / "snapshots" / str(step)
    if profile.learning.pure.steps not in profile.learning.snapshot_steps:
        yield profile.learning.pure.steps, last


def _write(rows: list[dict[str, str]], file: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(file) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def measure(plan: Plan, target: Path, work: Path) -> None:
    """Measure what the CSV `target` lacks."""
    root = project_root()
    rows = list(csv.DictReader(target.open(encoding="utf-8"))) if target.is_file() else []
    done = {(row["variant"], row["concept"], row["seed"], row["step"]) for row in rows}
    judges: Evaluators | None = None
    for name in plan.concepts:
        concept = load_concept(root / "data" / "concepts" / name)
        for seed in plan.seeds:
            for variant, overrides in plan.variants.items():
                if all((variant, name, str(seed), str(step)) in done for step in plan.steps):
                    continue
                kept = f"learning.snapshot_steps={plan.steps[:-1]}"
                settings = [*overrides, f"seed={seed}", f"learning.pure.steps={plan.steps[-1]}", kept]
                profile = load_profile(plan.profile, settings)
                backbone = SD3Backbone.load(profile.base)
                judges = judges or load_evaluators(profile.evaluation.evaluators, root, backbone.device)
                folder = work / variant / name / str(seed)
                for step, adapter in snapshots(backbone, concept, profile, folder):
                    if (variant, name, str(seed), str(step)) in done:
                        continue
                    backbone.load_adapter(adapter, "measured")
                    result = evaluate(
                        backbone,
                        "measured",
                        concept,
                        profile,
                        folder / "evaluation",
                        work / "originals",
                        evaluators=judges,
                    )
                    backbone.remove_adapter("measured")
                    head = {"variant": variant, "concept": name, "seed": str(seed), "step": str(step)}
                    rows.append(head | {key: f"{value:.6g}" for key, value in sorted(result.metrics.items())})
                    _write(rows, target)
                    logger.info("%s %s seed %d step %d measured", variant, name, seed, step)
                shutil.rmtree(folder, ignore_errors=True)


def main(
    plan: Annotated[Path, typer.Argument(help="YAML: profile, concepts, seeds, steps, variants")],
    only: Annotated[list[str] | None, typer.Option(help="these concepts only, to share the work out")] = None,
    target: Annotated[Path | None, typer.Option(help="the CSV; default beside the plan")] = None,
) -> None:
    """Measure the curves of a plan."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = read_plan(plan)
    if only:
        wanted = wanted.model_copy(update={"concepts": [name for name in wanted.concepts if name in only]})
    measure(wanted, target or plan.with_suffix(".csv"), project_root() / ".purecc" / "curves" / plan.stem)


if __name__ == "__main__":
    typer.run(main)
