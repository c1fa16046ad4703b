"""The adapter folder: each load path changes the output, ours restores the trained model exactly or refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.errors import IntegrityError, InvalidInput
from components.files import atomic_folder, write_manifest
from components.settings import BaseSettings, LoraSettings

LORA = LoraSettings(rank=2, alpha=6.0)
"""alpha differs from the rank: a format that loses it would load wrong."""


def trained(backbone: SD3Backbone, name: str, *, lora: bool = True, embeddings: bool = True) -> None:
    random = torch.Generator().manual_seed(9)
    values = torch.randn(backbone.adapted.embedding_shape, generator=random)
    backbone.create_adapter(
        name, concept="striped_star", lora=LORA if lora else None, embeddings_NRD=values if embeddings else None, seed=4
    )
    for key, value in backbone.parameters(name).get("lora", {}).items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1, generator=random)


def save(backbone: SD3Backbone, name: str, folder: Path) -> Path:
    with atomic_folder(folder) as partial:
        backbone.save_adapter(name, partial)
    return folder


@pytest.fixture
def folder(backbone: SD3Backbone, tmp_path: Path) -> Path:
    trained(backbone, "source")
    return save(backbone, "source", tmp_path / "adapter")


def inputs(backbone: SD3Backbone, prompts: list[str]) -> tuple[Tensor, Tensor, Any]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(len(prompts), *backbone.latent_shape, generator=random)
    return x, torch.linspace(0.2, 0.8, len(prompts)), backbone.encode_text(prompts)


def raw(transformer: Any, x: Tensor, t: Tensor, text: Any) -> Tensor:
    with torch.no_grad():
        v: Tensor = transformer(
            hidden_states=x,
            timestep=t * 1000,
            encoder_hidden_states=text.context_BLD,
            pooled_projections=text.pooled_BP,
        ).sample
    return v


@pytest.mark.parametrize(("lora", "embeddings"), [(True, True), (True, False), (False, True)])
def test_loading_restores_the_trained_model(
    backbone: SD3Backbone, base_settings: BaseSettings, tmp_path: Path, lora: bool, embeddings: bool
) -> None:
    trained(backbone, "source", lora=lora, embeddings=embeddings)
    folder = save(backbone, "source", tmp_path / "adapter")
    files = {path.name for path in folder.iterdir()}
    assert ("adapter_model.safetensors" in files) == ("pytorch_lora_weights.safetensors" in files) == lora
    x, t, text = inputs(backbone, ["a [V] star", "heart"])
    with torch.no_grad():
        expected = backbone.velocity(x, t, text, "source")
        base = backbone.velocity(x, t, text, None)
    fresh = SD3Backbone.load(base_settings)
    fresh.load_adapter(folder, "champion")
    with torch.no_grad():
        assert torch.equal(fresh.velocity(x, t, text, "champion"), expected)
        assert torch.equal(fresh.velocity(x, t, text, None), base)
    assert (expected - base).abs().max() > 1e-3
    assert not any(value.requires_grad for kind in fresh.parameters("champion").values() for value in kind.values())


def test_peft_loads_it(backbone: SD3Backbone, folder: Path, micro_family: Path) -> None:
    x, t, text = inputs(backbone, ["a red star", "heart"])
    model = SD3Transformer2DModel.from_pretrained(micro_family, subfolder="transformer").eval()
    base = raw(model, x, t, text)
    adapted = raw(PeftModel.from_pretrained(model, folder), x, t, text)
    with torch.no_grad():
        expected = backbone.velocity(x, t, text, "source")
    assert (adapted - base).abs().max() > 1e-3
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-6)


def test_diffusers_loads_it_with_its_alpha(backbone: SD3Backbone, folder: Path, micro_family: Path) -> None:
    x, t, text = inputs(backbone, ["a red star", "heart"])
    pipeline = StableDiffusion3Pipeline.from_pretrained(micro_family)
    base = raw(pipeline.transformer, x, t, text)
    pipeline.load_lora_weights(folder)
    adapted = raw(pipeline.transformer, x, t, text)
    with torch.no_grad():
        expected = backbone.velocity(x, t, text, "source")
    assert (adapted - base).abs().max() > 1e-3
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-6)


def test_metadata_says_what_it_is(backbone: SD3Backbone, folder: Path) -> None:
    with safe_open(folder / "concept_embeddings.safetensors", framework="pt") as stream:
        metadata = stream.metadata()
        assert stream.keys() == ["concept_embeddings"]
        assert tuple(stream.get_tensor("concept_embeddings").shape) == backbone.adapted.embedding_shape
    assert metadata["concept"] == "striped_star"
    assert metadata["base_fingerprint"] == backbone.fingerprint
    assert metadata["placeholder"] == "sks"
    assert metadata["rows"] == "clip,t5"


def test_equal_adapters_are_equal_bytes(backbone: SD3Backbone, folder: Path, tmp_path: Path) -> None:
    """The digest of an adapter folder is that of its content: no order of a set or of a hash map enters it."""
    for number in range(3):
        again = save(backbone, "source", tmp_path / f"again-{number}")
        assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}
    stated = json.loads((folder / "adapter_config.json").read_text())
    assert stated["target_modules"] == sorted(stated["target_modules"])


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=metadata)
    write_manifest(file.parent)


def change_metadata(file: Path, **changes: str) -> None:
    with safe_open(file, framework="pt") as stream:
        metadata = {**stream.metadata(), **changes}
    save_file(load_file(file), file, metadata=metadata)
    write_manifest(file.parent)


def change_config(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    write_manifest(file.parent)


def spoil(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def rename(tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[f"{name}.other"] = tensors.pop(name)


def drop(tensors: dict[str, Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


def widen(tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = torch.cat([tensors[name], tensors[name]], dim=-1)


def add(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.transformer_blocks.9.attn.to_q.lora_A.weight"] = torch.ones(2, 16)


LORA_FILE, EMBEDDINGS_FILE = "adapter_model.safetensors", "concept_embeddings.safetensors"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: change_metadata(f / EMBEDDINGS_FILE, base_fingerprint="0" * 64), "made for the base 000000000000"),
        (lambda f: change_metadata(f / EMBEDDINGS_FILE, placeholder="the"), "trained with the placeholder 'the'"),
        (lambda f: change_metadata(f / EMBEDDINGS_FILE, rows="clip"), "of 1 rows"),
        (lambda f: change_metadata(f / EMBEDDINGS_FILE, purecc_format="99"), "format '99'"),
        (lambda f: change_tensors(f / EMBEDDINGS_FILE, spoil), "not finite"),
        (lambda f: change_tensors(f / EMBEDDINGS_FILE, widen), r"embeddings \(3, 2, 32\)"),
        (lambda f: change_tensors(f / EMBEDDINGS_FILE, rename), "unknown tensors"),
        (lambda f: change_tensors(f / LORA_FILE, spoil), "not finite"),
        (lambda f: change_tensors(f / LORA_FILE, rename), "2 tensors do not fit"),
        (lambda f: change_tensors(f / LORA_FILE, drop), "1 tensors do not fit"),
        (lambda f: change_tensors(f / LORA_FILE, widen), "1 tensors do not fit"),
        (lambda f: change_tensors(f / LORA_FILE, add), "1 tensors do not fit"),
        (lambda f: change_config(f / "adapter_config.json", use_dora=True), "True is not supported"),
        (lambda f: change_config(f / "adapter_config.json", use_rslora=True), "True is not supported"),
        (lambda f: change_config(f / "adapter_config.json", r=0), "no rank and alpha"),
        (lambda f: change_config(f / "adapter_config.json", target_modules=["attn.to_q"]), "other modules"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    backbone: SD3Backbone, folder: Path, damage: Callable[[Path], None], problem: str
) -> None:
    backbone.remove_adapter("source")
    damage(folder)
    with pytest.raises(InvalidInput, match=problem) as error:
        backbone.load_adapter(folder, "x")
    assert error.value.file is not None
    assert str(folder) in str(error.value.file)
    assert backbone.adapted.names == ()


def test_an_adapter_without_effect_is_refused(backbone: SD3Backbone, tmp_path: Path) -> None:
    backbone.create_adapter("zero", concept="c", lora=LORA)
    folder = save(backbone, "zero", tmp_path / "zero")
    with pytest.raises(InvalidInput, match="no effect"):
        backbone.load_adapter(folder, "x")
    assert backbone.adapted.names == ("zero",)


@pytest.mark.parametrize("file", [LORA_FILE, EMBEDDINGS_FILE, "adapter_config.json", "SHA256SUMS"])
def test_a_folder_that_does_not_match_its_manifest_is_refused(backbone: SD3Backbone, folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(IntegrityError):
        backbone.load_adapter(folder, "x")
    (folder / file).unlink()
    with pytest.raises(IntegrityError):
        backbone.load_adapter(folder, "x")


def test_a_truncated_file_under_a_new_manifest_is_refused(backbone: SD3Backbone, folder: Path) -> None:
    file = folder / LORA_FILE
    file.write_bytes(file.read_bytes()[:-10])
    write_manifest(folder)
    with pytest.raises(InvalidInput, match="not a readable safetensors file"):
        backbone.load_adapter(folder, "x")


def test_no_folder(backbone: SD3Backbone, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such adapter folder"):
        backbone.load_adapter(tmp_path / "none", "x")


def test_another_base_is_refused(
    backbone: SD3Backbone, folder: Path, base_settings: BaseSettings, micro_family: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-base"
    shutil.copytree(micro_family, other)
    change: Any = load_file(other / "transformer" / "diffusion_pytorch_model.safetensors")
    change["proj_out.bias"] += 0.1
    save_file(change, other / "transformer" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    stranger = SD3Backbone.load(base_settings.model_copy(update={"path": str(other)}))
    with pytest.raises(InvalidInput, match="made for the base"):
        stranger.load_adapter(folder, "x")


def test_weights_are_float32_on_a_bfloat16_base(base_settings: BaseSettings, tmp_path: Path) -> None:
    backbone = SD3Backbone.load(base_settings.model_copy(update={"dtype": "bfloat16"}))
    trained(backbone, "a")
    kinds = backbone.parameters("a")
    assert {value.dtype for kind in kinds.values() for value in kind.values()} == {torch.float32}
    x, t, text = inputs(backbone, ["a [V] star", "heart"])
    with torch.no_grad():
        v = backbone.velocity(x, t, text, "a")
    assert v.dtype == torch.float32
    folder = save(backbone, "a", tmp_path / "adapter")
    backbone.load_adapter(folder, "b")
    with torch.no_grad():
        assert torch.equal(backbone.velocity(x, t, text, "b"), v)
