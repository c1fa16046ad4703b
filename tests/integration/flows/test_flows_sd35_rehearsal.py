"""A rehearsal of the real scale: `profiles/sd35-medium.yaml` on a base with every trait of SD 3.5 Medium but its size.

Random weights; the transformer's configuration has the fields of the published one, dual attention in the first blocks
only, CLIP encoders of different widths whose configurations state the legacy end of text, a T5 wider than both, an
autoencoder with a shift, a placeholder of one CLIP token and several T5 tokens, weights in bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from sd35 import SHRUNKEN
from sd35 import TRANSFORMER as PUBLISHED
from small_project import MicroProject
from untrained_evaluators import save_sam

from components.world import family

SETTINGS = (
    "base.path=infra/models/shrunken",
    "base.resolution=64",
    "base.max_sequence_length=32",
    "base.device=cpu",
    "learning.extractor.steps=2",
    "learning.pure.steps=2",
    "learning.gradient_checkpointing=true",
    "evaluation.prompts=profiles/prompts/micro.yaml",
    "evaluation.seeds=1",
    "evaluation.sampling.steps=2",
    "evaluation.evaluators={clip: infra/models/clip, dino: infra/models/dino, segmenter: infra/models/sam}",
    "gates={fidelity/clip_i: {minimum: -1}}",
)


def create_shrunken(folder: Path) -> None:
    """Write the base in the layout of the hub."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

    first, second = family.clip_tokenizer(), family.clip_tokenizer(pad_token="!")
    first.model_max_length = second.model_max_length = 77
    words = [word for word in family.words() if word != "sks"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *((f"▁{word}", -2.0) for word in words)]
    third = T5Tokenizer(vocab=[*pieces, (",", -2.0), ("▁s", -3.0), ("k", -3.0), ("s", -3.0)], extra_ids=0)

    def clip(width: int, activation: str, tokenizer: Any) -> Any:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
            num_attention_heads=2, projection_dim=width, max_position_embeddings=77, hidden_act=activation,
            bos_token_id=0, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**SHRUNKEN),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16), layers_per_block=2, latent_channels=16, norm_num_groups=4,
                scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
            ),
            text_encoder=clip(16, "quick_gelu", first), tokenizer=first,
            text_encoder_2=clip(24, "gelu", second), tokenizer_2=second,
            text_encoder_3=T5EncoderModel(
                T5Config(
                    vocab_size=len(third), d_model=48, d_ff=96, d_kv=8, num_heads=6, num_layers=2,
                    feed_forward_proj="gated-gelu", is_encoder_decoder=False,
                )
            ),
            tokenizer_3=third,
        )  # fmt: skip
    pipeline.to(torch.bfloat16).save_pretrained(folder)


@pytest.fixture(scope="module")
def rehearsal(micro_template: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> MicroProject:
    root = tmp_path_factory.mktemp("rehearsal") / "project"
    shutil.copytree(micro_template, root, symlinks=True)
    shutil.copy(repository / "profiles" / "sd35-medium.yaml", root / "profiles")
    create_shrunken(root / "infra" / "models" / "shrunken")
    save_sam(root / "infra" / "models" / "sam")
    return MicroProject(root)


def overrides(*more: str) -> list[str]:
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


def photos(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (512, 512, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    return sorted(folder.iterdir())


def test_the_configuration_is_that_of_the_real_model(rehearsal: Any) -> None:
    file = rehearsal.root / "infra" / "models" / "shrunken" / "transformer" / "config.json"
    written = json.loads(file.read_text())
    assert {name for name in written if not name.startswith("_")} == set(PUBLISHED)
    assert SHRUNKEN["joint_attention_dim"] > SHRUNKEN["pooled_projection_dim"], "CLIP's rows are padded in width"
    assert max(SHRUNKEN["dual_attention_layers"]) < SHRUNKEN["num_layers"] - 1


def test_the_profile_has_the_papers_budget(rehearsal: Any) -> None:
    content = yaml.safe_load((rehearsal.root / "profiles" / "sd35-medium.yaml").read_text())
    learning = content["learning"]
    assert content["base"]["resolution"] == 1024
    assert (learning["lora"]["rank"], learning["batch_size"], learning["mixed_precision"]) == (4, 2, "bf16")
    assert [learning[stage]["steps"] for stage in ("extractor", "pure")] == [400, 400]
    assert [learning[stage]["lora_learning_rate"] for stage in ("extractor", "pure")] == [1e-4, 1e-4]
    assert content["evaluation"]["sampling"]["steps"] == 28


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_published_csv_goes_the_whole_way(rehearsal: Any, tmp_path: Path) -> None:
    """The CSV of the released code, PureCC in two stages, evaluation with SAM, promotion, and an image of it."""
    images = photos(tmp_path / "csv" / "images")
    lines = ["image_path,prompt,target_prompt,base_prompt,instance_word"]
    lines += [f"images/{file.name},a [v] star on the left,[v] star,a star on the left,star" for file in images]
    (tmp_path / "csv" / "my_star.csv").write_text("\n".join(lines) + "\n")
    profile = ("--profile", "sd35-medium")
    imported = rehearsal.purecc("concepts", "import", str(tmp_path / "csv" / "my_star.csv"), *profile, "--json")
    assert imported.code == 0, imported.stderr
    done = rehearsal.purecc("customize", "my_star", *profile, *overrides(), "--json")
    assert done.code == 0, done.stderr
    assert (done.json["status"], done.json["champion"]) == ("promoted", 1)
    (file,) = (rehearsal.root / ".purecc" / "artifacts" / "pure-learning").rglob("concept_embeddings.safetensors")
    with safe_open(file, framework="pt") as stream:
        assert stream.metadata()["rows"] == "clip,t5,t5,t5"
        (name,) = stream.keys()
        assert tuple(stream.get_tensor(name).shape) == (SHRUNKEN["num_layers"], 4, 16)
    out = tmp_path / "drawn.png"
    drawn = rehearsal.purecc(
        "generate", "a <my_star> star on a beach", *profile, *overrides(), "--out", str(out), "--json"
    )
    assert drawn.code == 0, drawn.stderr
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.long
def test_a_dreambooth_folder_goes_the_whole_way_by_full_fine_tuning(rehearsal: Any, tmp_path: Path) -> None:
    photos(tmp_path / "circle6")
    profile = ("--profile", "sd35-medium")
    imported = rehearsal.purecc(
        "concepts", "import", str(tmp_path / "circle6"), "--class-word", "circle", *profile, "--json"
    )
    assert imported.code == 0, imported.stderr
    given = [setting for setting in SETTINGS if not setting.startswith("learning.extractor")]
    given += ["learning.method=dreambooth", "learning.pure.weight_learning_rate=1e-3", "learning.prior.images=2"]
    given += ["learning.prior.sampling.steps=2"]
    settings = [part for setting in given for part in ("--set", setting)]
    done = rehearsal.purecc("customize", "circle6", *profile, *settings, "--json")
    assert done.code == 0, done.stderr
    assert done.json["status"] == "promoted"
