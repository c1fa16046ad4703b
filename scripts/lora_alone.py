"""What a concept loses when its LoRA is loaded alone: its layer-wise embeddings are left out.

    python scripts/lora_alone.py --adapter FOLDER [--pictures 24] [--out docs/consumers/lora_alone.json]

FOLDER is the adapter folder of a shipped concept on the tiny profile, such as
`.purecc/artifacts/pure-learning/KEY/adapter`. The profile's prompts that name the concept are drawn by diffusers with
the exported loader, by `pipe.load_lora_weights` and `PeftModel.from_pretrained` alone, and by the base; the oracle of
the procedural world says in how many pictures it sees the concept's look or style, and what else of the prompt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from consumer_pictures import Pictures, by_diffusers  # first: it sets up paths and environment

from components.backbones import adapter_folder
from components.backbones.sd3 import SD3Backbone
from components.evaluation.prompts import Prompt, load_prompts
from components.export.diffusers_folder import export_diffusers
from components.serving.recording import picture
from components.serving.requests import ImageRequest
from components.serving.service import ImageService
from components.settings import load_profile, project_root
from components.world.concepts import INSTANCES
from components.world.oracle import Oracle

WAYS = {"with the loader": "loader", "pipe.load_lora_weights": "diffusers", "PeftModel.from_pretrained": "peft"}


def chosen(prompts: tuple[Prompt, ...], count: int) -> list[Prompt]:
    """Prompts of one object that name the concept and ask for no other look, evenly over the set."""
    usable = [
        prompt
        for prompt in prompts
        if prompt.has_concept and "shape" in prompt.expect and prompt.category not in ("colour change", "style")
    ]
    return [usable[index] for index in np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)]


def judged(oracle: Oracle, pictures: Pictures, prompts: list[Prompt], attribute: str, label: str) -> dict[str, float]:
    """What the oracle sees in the pictures of the prompts."""
    images_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = oracle.predict(images_BCHW)
    probability_B = oracle.probabilities(images_BCHW)[attribute][:, oracle.labels[attribute].index(label)]
    right = [seen[name][i] == value for i, prompt in enumerate(prompts) for name, value in prompt.expect.items()]
    return {
        "recognised": round(float(np.mean([found == label for found in seen[attribute]])), 3),
        "probability": round(float(probability_B.mean()), 3),
        "rest_of_the_prompt": round(float(np.mean(right)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, help="of sampling; default: the profile's")
    parser.add_argument("--out", type=Path, default=Path("docs/consumers/lora_alone.json"))
    arguments = parser.parse_args()
    steps = [f"evaluation.sampling.steps={arguments.steps}"] if arguments.steps else []
    profile = load_profile(arguments.profile, steps)
    name = adapter_folder.read_identity(arguments.adapter)["concept"]
    concept = yaml.safe_load((arguments.adapter / "concept.yaml").read_text(encoding="utf-8"))
    attribute, label = ("look", INSTANCES[name].look) if name in INSTANCES else ("style", name)
    prompt_set = load_prompts(project_root() / profile.evaluation.prompts)
    prompts = chosen(prompt_set.for_concept(concept["kind"], concept["class_word"]), arguments.pictures)
    texts = [prompt.complete.replace("[V]", f"<{name}>") for prompt in prompts]
    backbone = SD3Backbone.load(profile.base)
    base: dict[str, Any] = {
        "settings": profile.base.model_dump(mode="json"),
        "fingerprint": backbone.fingerprint,
        "sampling": profile.evaluation.sampling.model_dump(mode="json"),
    }
    oracle = Oracle.load(project_root() / str(profile.evaluation.evaluators.oracle))
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        folder = export_diffusers(
            arguments.adapter, Path(temporary) / "diffusers", base, class_word=concept["class_word"]
        )
        base_folder = (project_root() / profile.base.path).resolve()
        for title, way in WAYS.items():
            pictures = by_diffusers(folder, base_folder, texts, profile, backbone.latent_shape, way)
            table[title] = judged(oracle, pictures, prompts, attribute, label)
    service = ImageService(backbone, profile.evaluation.sampling)
    requests = [ImageRequest(prompt=prompt.base, seed=seed) for seed, prompt in enumerate(prompts)]
    pictures = [picture(service.draw(each, original=True).png) for each in requests]
    table["the base"] = judged(oracle, pictures, prompts, attribute, label)
    facts = {"concept": name, attribute: label, "pictures": len(prompts), "base": backbone.fingerprint[:12]}
    found = {**facts, "steps": profile.evaluation.sampling.steps, "seen_by_the_oracle": table}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
