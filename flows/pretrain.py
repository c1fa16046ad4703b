"""The tiny model family from a seed: the embedded default, made again.

    python -m flows.pretrain --seed 0 --processes 2

Each part is trained in turn (autoencoder, flow, oracle, encoders, segmenter, preference models), resumes from its
checkpoint if it was interrupted, and is skipped once finished; then the family is put where the profile looks for it,
measured by the oracle, and described in its model card. On two CPU cores this takes some hours; on a GPU, minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.settings import project_root
from flows.engine import connected, prefect_server, prepare_environment

if __name__ == "__main__":
    prepare_environment(project_root())  # before prefect reads its settings

from prefect import flow, task

from components.world.pretraining.describe import describe
from components.world.pretraining.recipe import RECIPES
from components.world.pretraining.stages import PARTS, assemble


@task(task_run_name="train-{part}")
def train_part(part: str, recipe: str, work: Path, seed: int, processes: int) -> None:
    """Train one part in processes of its own; they share the batch."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    module = ["-m", "components.world.pretraining.stages", part]
    options = ["--work", str(work), "--recipe", recipe, "--seed", str(seed)]
    # one thread per process: two threads in one are slower than two processes
    subprocess.run([*launcher, *module, *options], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@flow(name="pretrain")
def pretrain(
    base: Path, evaluators: Path, work: Path, recipe: str = "tiny", seed: int = 0, processes: int = 1
) -> dict[str, dict[str, float]]:
    """Build the family; returns prompt form -> attribute -> accuracy of the finished base."""
    for part in PARTS:
        train_part(part, recipe, work, seed, processes)
    task(assemble)(work, base, evaluators)
    return task(describe)(base, evaluators, work=work, recipe=RECIPES[recipe], seed=seed)


def main(
    recipe: Annotated[str, typer.Option(help="tiny, or micro to try it out")] = "tiny",
    seed: int = 0,
    processes: Annotated[int, typer.Option(help="processes that share each step")] = 1,
    target: Annotated[Path | None, typer.Option(help="folder of the models; default infra/models")] = None,
    work: Annotated[Path | None, typer.Option(help="checkpoints; default .purecc/pretraining")] = None,
) -> None:
    """Train the tiny model family and its evaluators."""
    root = project_root()
    models = target or root / "infra" / "models"
    with prefect_server(root) as server, connected(server):
        quality = pretrain(
            models / "tiny",
            models / "tiny-evaluators",
            work or root / ".purecc" / "pretraining",
            recipe=recipe,
            seed=seed,
            processes=processes,
        )
    for form, accuracies in quality.items():
        typer.echo(f"{form}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracies.items()))


if __name__ == "__main__":
    typer.run(main)
