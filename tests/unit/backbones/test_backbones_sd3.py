"""The backbone against diffusers' own pipeline on the same folder, and what it refuses to load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from components.backbones import base_folder, sampling
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.settings import BaseSettings

PROMPTS = ["a red star on the left, brick background", "heart"]


@pytest.fixture(scope="module")
def pipeline(micro_family: Path) -> Any:
    pipe = StableDiffusion3Pipeline.from_pretrained(micro_family)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_text_encoding_equals_the_pipelines(backbone: SD3Backbone, pipeline: Any) -> None:
    text, null = backbone.encode_text(PROMPTS), backbone.encode_text(["", ""])
    context, null_context, pooled, null_pooled = pipeline.encode_prompt(PROMPTS, None, None, max_sequence_length=20)
    assert torch.equal(text.context_BLD, context)
    assert torch.equal(text.pooled_BP, pooled)
    assert torch.equal(null.context_BLD, null_context)
    assert torch.equal(null.pooled_BP, null_pooled)
    assert text.concept_rows == ({}, {})


def test_text_encoding_without_t5_equals_the_pipelines(
    base_settings: BaseSettings, micro_family: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "no-t5"
    pipe = StableDiffusion3Pipeline.from_pretrained(micro_family, text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(folder)
    backbone = SD3Backbone.load(base_settings.model_copy(update={"path": str(folder)}))
    context, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, max_sequence_length=20)
    text = backbone.encode_text(PROMPTS)
    assert torch.equal(text.context_BLD, context)
    assert torch.equal(text.pooled_BP, pooled)


@pytest.mark.parametrize("scale", [5.0, 1.0], ids=["guided", "unguided"])
def test_sampling_equals_the_pipelines(backbone: SD3Backbone, pipeline: Any, scale: float) -> None:
    noise = sampling.noise([7, 8], backbone.latent_shape)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=5,
        guidance_scale=scale,
        latents=noise,
        output_type="pt",
        height=64,
        width=64,
        max_sequence_length=20,
    ).images
    ours = backbone.sample(
        backbone.encode_text(PROMPTS),
        backbone.encode_text([""]),
        seeds=[7, 8],
        steps=5,
        guidance_scale=scale,
        adapter=None,
    )
    assert ours.std() > 0.05, "an image without content would equal anything"
    torch.testing.assert_close((ours + 1) / 2, theirs, rtol=0, atol=2e-5)


def test_without_guidance_there_is_no_second_half(backbone: SD3Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    velocity = backbone.velocity
    monkeypatch.setattr(backbone, "velocity", lambda x, t, text, a: (sizes.append(len(x)), velocity(x, t, text, a))[1])
    text, null = backbone.encode_text(PROMPTS), backbone.encode_text([""])
    for scale in (1.0, 0.0, 1.5):
        backbone.sample(text, null, seeds=[0, 1], steps=1, guidance_scale=scale, adapter=None)
    assert sizes == [2, 2, 4]


def test_noise_depends_on_the_seed_and_not_on_the_batch(backbone: SD3Backbone) -> None:
    shape = backbone.latent_shape
    assert torch.equal(sampling.noise([3, 4, 5], shape)[1], sampling.noise([4], shape)[0])
    assert not torch.equal(sampling.noise([3], shape), sampling.noise([4], shape))
    text, null = backbone.encode_text(PROMPTS), backbone.encode_text([""])
    both = backbone.sample(text, null, seeds=[1, 2], steps=3, guidance_scale=4.0, adapter=None)
    alone = backbone.sample(text.select([1]), null, seeds=[2], steps=3, guidance_scale=4.0, adapter=None)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


def test_images_and_latents(backbone: SD3Backbone, pipeline: Any) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode_image(images)
    assert tuple(latents.shape[1:]) == backbone.latent_shape
    mode = pipeline.vae.encode(images).latent_dist.mode()
    config = pipeline.vae.config
    torch.testing.assert_close(latents, (mode - config.shift_factor) * config.scaling_factor)
    pixels = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(backbone.decode(latents), pixels.detach())


def test_encoders_can_be_freed_and_come_back(backbone: SD3Backbone) -> None:
    before = backbone.encode_text(PROMPTS)
    backbone.free("text", "vae")
    assert backbone._text is None
    assert backbone._vae is None
    assert torch.equal(backbone.encode_text(PROMPTS).context_BLD, before.context_BLD)


def test_the_settings_say_how_many_threads_a_process_takes(base_settings: BaseSettings) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        SD3Backbone.load(base_settings)
        assert torch.get_num_threads() == 2
        SD3Backbone.load(base_settings.model_copy(update={"threads": 1}))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_conditions_that_share_a_pass_equal_separate_passes(backbone: SD3Backbone) -> None:
    from components.settings import LoraSettings

    random = torch.Generator().manual_seed(0)
    shape = backbone.adapted.embedding_shape
    backbone.create_adapter("one", concept="c", embeddings_NRD=torch.randn(shape, generator=random))
    backbone.create_adapter(
        "two", concept="c", lora=LoraSettings(), embeddings_NRD=torch.randn(shape, generator=random)
    )
    for value in backbone.parameters("two")["lora"].values():
        torch.nn.init.normal_(value, std=0.1, generator=random)
    text = backbone.encode_text(["a [V] star", "heart"])
    x, t = torch.randn(2, *backbone.latent_shape, generator=random), torch.tensor([0.3, 0.8])
    conditions = [(text, "one"), (text, "two"), (text, None), (text.select([1, 0]), "one")]
    with torch.no_grad():
        together = backbone.velocities(x, t, conditions)
        for (condition, adapter), v in zip(conditions, together, strict=True):
            torch.testing.assert_close(v, backbone.velocity(x, t, condition, adapter), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[2]).abs().max() > 1e-3
    assert (together[1] - together[2]).abs().max() > 1e-3


def test_the_same_call_is_bit_identical(backbone: SD3Backbone) -> None:
    text, null = backbone.encode_text(PROMPTS), backbone.encode_text([""])
    one, two = (backbone.sample(text, null, seeds=[1, 2], steps=3, guidance_scale=4.0, adapter=None) for _ in range(2))
    assert torch.equal(one, two)


# what is refused


@pytest.fixture
def copy(micro_family: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_family, tmp_path / "copy"))


def load(settings: BaseSettings, folder: Path) -> SD3Backbone:
    return SD3Backbone.load(settings.model_copy(update={"path": str(folder)}), parts=("text", "vae", "transformer"))


def test_missing_folder(base_settings: BaseSettings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such base model folder"):
        load(base_settings, tmp_path / "none")


def test_unknown_hub_id_is_not_looked_up_online(base_settings: BaseSettings) -> None:
    with pytest.raises(InvalidInput, match="neither a folder nor a model in the local Hugging Face cache"):
        SD3Backbone.load(base_settings.model_copy(update={"path": "nobody/no-such-model"}))


def test_missing_shard(base_settings: BaseSettings, copy: Path) -> None:
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    index = {
        "metadata": {},
        "weight_map": {
            "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
        },
    }
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="00002-of-00002.safetensors: missing"):
        load(base_settings, copy)


@pytest.mark.parametrize(
    "part", ["transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
)
def test_truncated_weights(base_settings: BaseSettings, copy: Path, part: str) -> None:
    file = copy / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match=f"{part}.safetensors"):
        load(base_settings, copy)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_clip_encoder_that_does_not_belong_to_its_tokenizer_is_refused(
    base_settings: BaseSettings, copy: Path, part: str
) -> None:
    file = copy / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 5}))
    with pytest.raises(InvalidInput, match="eos_token_id is 5") as error:
        load(base_settings, copy)
    assert error.value.file == file


def test_pooling_is_at_the_end_of_the_text_and_not_at_the_largest_id(base_settings: BaseSettings, copy: Path) -> None:
    """The pooling trap: with the legacy `eos_token_id: 2` of SD3's configurations and a token behind the end of text.

    The micro vocabulary gets a token with a larger id than the end of text; transformers, left alone, pools there.
    """
    for part in ("text_encoder", "text_encoder_2"):
        file = copy / part / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"eos_token_id": 2, "vocab_size": config["vocab_size"] + 1}))
        weights = load_file(copy / part / "model.safetensors")
        name = next(name for name in weights if name.endswith("token_embedding.weight"))
        weights[name] = torch.cat([weights[name], weights[name][5:6]])
        save_file(weights, copy / part / "model.safetensors", metadata={"format": "pt"})
    backbone = load(base_settings, copy)
    encoders, eos = backbone.text_encoders(), backbone.tokenizer.clip.eos_token_id
    ids = backbone.tokenizer(["a star"]).clip_BN.clone()
    ids[0, 1] = eos + 1
    for clip in (encoders.clip, encoders.clip_2):
        output = clip(ids, output_hidden_states=True)
        end = ids[0].tolist().index(eos)
        assert int(ids[0].argmax()) != end
        torch.testing.assert_close(output.text_embeds[0], clip.text_projection(output.last_hidden_state[0, end]))


def test_dynamic_shift_is_refused(base_settings: BaseSettings, copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(InvalidInput, match="shift"):
        load(base_settings, copy)


def test_fingerprint_follows_every_byte(micro_family: Path, copy: Path, project: Path, backbone: SD3Backbone) -> None:
    original = base_folder.fingerprint(micro_family)
    assert base_folder.fingerprint(copy) == original, "the place does not matter"
    assert list((project / ".purecc" / "fingerprints").glob("*.json"))
    assert base_folder.fingerprint(copy) == original, "from the cache"
    (copy / "README.md").write_text("a note")
    assert base_folder.fingerprint(copy) == original, "a note does not matter"
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base_folder.fingerprint(copy) != original
