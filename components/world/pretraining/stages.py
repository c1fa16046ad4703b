"""The parts of the family in the order they are made; each is resumable and leaves `<work>/<part>/model`.

torchrun --nproc_per_node 2 -m components.world.pretraining.stages flow --work .purecc/pretraining --recipe tiny
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from components.files import atomic_folder
from components.world.family import untrained_pipeline
from components.world.pretraining.autoencoder import train_autoencoder
from components.world.pretraining.flow import train_flow
from components.world.pretraining.judges.clip import ClipObjective
from components.world.pretraining.judges.dino import DinoObjective
from components.world.pretraining.judges.judge import Judge
from components.world.pretraining.judges.oracle import OracleObjective
from components.world.pretraining.judges.preference import PreferenceObjective
from components.world.pretraining.judges.segmenter import SegmenterObjective
from components.world.pretraining.judges.style import StyleObjective
from components.world.pretraining.loop import train
from components.world.pretraining.recipe import RECIPES, Recipe

JUDGES: dict[str, Callable[[], Judge]] = {
    "oracle": OracleObjective,
    "dino": DinoObjective,
    "clip": ClipObjective,
    "segmenter": SegmenterObjective,
    "csd": StyleObjective,
    # HPS's annotators judged quality first, PickScore's users what they had asked for
    "hps": lambda: PreferenceObjective(damaged=0.75),
    "pickscore": lambda: PreferenceObjective(damaged=0.25),
}
"""Part -> what trains it; also the names under which a profile's `evaluation.evaluators` knows them."""
PARTS = ("autoencoder", "flow", *JUDGES)


def make_part(part: str, recipe: Recipe, *, work: Path, seed: int) -> Path:
    """Train one part, or take it from its finished folder.

    Returns:
        The folder of the trained part: a Hugging Face model, or for `flow` the whole pipeline.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    model = work / part / "model"
    if model.is_dir():
        return model
    torch.manual_seed(seed)
    if state.device.type == "cpu":
        torch.backends.cuda.enable_flash_sdp(False)  # governs the CPU kernel too: slow for short sequences
    loop = recipe.loop(part)
    if part in JUDGES:
        objective = JUDGES[part]()
        train(objective, loop, folder=work / part, seed=seed)
        if state.is_main_process:
            with atomic_folder(model) as folder:
                objective.save(folder)
    else:
        pipeline = untrained_pipeline(recipe.size, seed=seed)
        if part == "autoencoder":
            train_autoencoder(pipeline.vae, loop, folder=work / part, seed=seed)
        else:
            trained = AutoencoderKL.from_pretrained(work / "autoencoder" / "model")
            pipeline.vae.load_state_dict(trained.state_dict())  # the weights alone: its configuration names the folder
            train_flow(pipeline, loop, recipe.flow_settings, folder=work / part, seed=seed)
        if state.is_main_process:
            with atomic_folder(model) as folder:
                if part == "autoencoder":
                    pipeline.vae.save_pretrained(folder)
                else:
                    save_pipeline(pipeline, folder)
    state.wait_for_everyone()
    return model


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write the pipeline; the transformer in half precision, which loaders turn back into float32."""
    pipeline.transformer.half()
    pipeline.save_pretrained(folder)
    pipeline.transformer.float()


def assemble(work: Path, base: Path, evaluators: Path) -> None:
    """Copy the finished parts to where profiles look for them."""
    with atomic_folder(base) as folder:
        shutil.copytree(work / "flow" / "model", folder, dirs_exist_ok=True)
    with atomic_folder(evaluators) as folder:
        for part in JUDGES:
            shutil.copytree(work / part / "model", folder / part)


def main() -> None:
    """The command line of one part, which `torchrun` and `accelerate launch` start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_part(arguments.part, RECIPES[arguments.recipe], work=arguments.work, seed=arguments.seed)


if __name__ == "__main__":
    main()
