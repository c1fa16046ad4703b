"""Fidelity-preservation curves of settings against each other, over training steps, concepts and seeds.

    python -m flows.curves measure docs/curves/lora-purecc.yaml
    python -m flows.curves draw docs/curves/lora-purecc.yaml
    python -m flows.curves picture docs/curves/lora-purecc.yaml striped_star docs/images/same-seed.png

The file names the variants (settings over the profile's), concepts, seeds and the steps at which an adapter is kept and
evaluated. Each evaluated adapter is a row of the CSV beside the file; rows that are there are not measured again. What
is drawn from them, a table and a plot, stands beside it too.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept, load_concept
from components.concepts.images import load_image
from components.concepts.texts import derive_texts
from components.errors import InvalidInput
from components.evaluation import curve_report
from components.evaluation.benchmark_report import AXES
from components.evaluation.cells import checked, read_cells
from components.evaluation.comparison import compose, draw_models
from components.evaluation.evaluate import evaluate
from components.evaluation.evaluators import Evaluators, load_evaluators
from components.evaluation.pictures import to_pictures
from components.files import atomic_file, write_text
from components.learning.extractor import train_extractor
from components.learning.pure import train_pure
from components.learning.tracker import NullTracker
from components.settings import Profile, load_profile, project_root

logger = logging.getLogger(__name__)

LEVELS = (0.3, 0.5, 0.7)


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
    if profile.learning.has_extractor:
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


app = typer.Typer(add_completion=False, help=__doc__)
_Plan = Annotated[Path, typer.Argument(help="YAML: profile, concepts, seeds, steps, variants")]


@app.command("measure")
def measure_command(
    plan: _Plan,
    only: Annotated[list[str] | None, typer.Option(help="these concepts only, to share the work out")] = None,
    target: Annotated[Path | None, typer.Option(help="the CSV; default beside the plan")] = None,
) -> None:
    """Measure the curves of a plan."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = read_plan(plan)
    if only:
        wanted = wanted.model_copy(update={"concepts": [name for name in wanted.concepts if name in only]})
    measure(wanted, target or plan.with_suffix(".csv"), project_root() / ".purecc" / "curves" / plan.stem)


@app.command("draw")
def draw_command(
    plan: _Plan,
    more: Annotated[list[Path] | None, typer.Option(help="further CSV files of the same plan")] = None,
) -> None:
    """Draw the table and the plot of what is measured."""
    files = [plan.with_suffix(".csv"), *(more or [])]
    cells = checked(pd.concat([read_cells(file) for file in files], ignore_index=True))
    baseline = str(cells["method"].iloc[0])
    tables = [f"**{axes.name}**\n\n" + curve_report.table(cells, axes, LEVELS, baseline) for axes in AXES]
    write_text(plan.with_suffix(".md"), "\n\n".join(tables) + "\n")
    curve_report.plot(cells, AXES, plan.with_suffix(".png"))


@app.command("picture")
def picture_command(
    plan: _Plan,
    name: Annotated[str, typer.Argument(help="a concept, of instance kind")],
    target: Annotated[Path, typer.Argument(help="the PNG to write")],
    variant: Annotated[list[str], typer.Option(help="variants to show beside the original")] = ["lora", "purecc"],  # noqa: B006
    prompt: Annotated[list[str] | None, typer.Option(help="prompts with [V]")] = None,
    seed: int = 0,
) -> None:
    """Train the variants to the plan's last step and draw them beside the original model, same seeds."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted, root = read_plan(plan), project_root()
    concept = load_concept(root / "data" / "concepts" / name)
    word = concept.class_word
    texts = prompt or [
        f"a [V] {word} on the right, snow background",
        f"a [V] {word} at the top, water background",
        f"a [V] {word} on the left and a red heart on the right, sand background",
    ]
    profile = load_profile(wanted.profile)
    backbone = SD3Backbone.load(profile.base)
    models: dict[str, str | None] = {"original": None}
    with tempfile.TemporaryDirectory() as folder:
        for title in variant:
            settings = [*wanted.variants[title], f"learning.pure.steps={wanted.steps[-1]}"]
            *_, (_, adapter) = snapshots(
                backbone, concept, load_profile(wanted.profile, settings), Path(folder) / title
            )
            backbone.load_adapter(adapter, title)
            models[title] = title
    pairs = [
        (texts_.complete, texts_.base)
        for texts_ in (derive_texts(text, kind=concept.kind, class_word=word) for text in texts)
    ]
    sampling = profile.evaluation.sampling
    columns = draw_models(
        backbone, models, pairs, seed=seed, steps=sampling.steps, guidance_scale=sampling.guidance_scale
    )
    references = [to_pictures(load_image(item.path, profile.base.resolution)[None])[0] for item in concept.references]
    with atomic_file(target) as temporary:
        compose(references, columns, texts).save(temporary, format="png")


if __name__ == "__main__":
    app()
