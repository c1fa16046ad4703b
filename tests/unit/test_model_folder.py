"""Every way in which a model folder can be incomplete is found, and the file is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.model_folder import model_problems, pipeline_problems, safetensors_problem


def write_weights(file: Path) -> None:
    save_file({"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.float16)}, file, metadata={"format": "pt"})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline with one part in a file, one in shards, a tokenizer, a scheduler and an absent optional part."""
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name, file in [("scheduler", "scheduler_config.json"), ("tokenizer", "tokenizer_config.json")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    for name in ("text_encoder", "transformer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    write_weights(tmp_path / "text_encoder" / "model.safetensors")
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        write_weights(tmp_path / "transformer" / shard)
    weight_map = {"x": shards[0], "y": shards[1], "z": shards[1]}
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return tmp_path


def test_complete_pipeline_has_no_problem(pipeline: Path) -> None:
    assert pipeline_problems(pipeline) == []


def test_complete_family_has_no_problem(micro_family: Path) -> None:
    assert pipeline_problems(micro_family) == []


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ],
)
def test_missing_file_is_found(pipeline: Path, missing: str) -> None:
    (pipeline / missing).unlink()
    (problem,) = pipeline_problems(pipeline)
    assert str((pipeline / missing).parent) in problem
    if "-of-" in missing or (missing.endswith("config.json") and "encoder" in missing):
        assert missing in problem


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_found(pipeline: Path, kept: int) -> None:
    file = pipeline / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    (problem,) = pipeline_problems(pipeline)
    assert str(file) in problem


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>" * 20,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}" + b"surplus",
        struct.pack("<Q", 12) + b'{"a": "text"' + b"}",
        struct.pack("<Q", 2**63) + b"{}",
    ],
    ids=["html", "list", "surplus", "broken", "huge"],
)
def test_file_that_is_no_safetensors_is_found(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert str(file) in (safetensors_problem(file) or "")


def test_index_without_shards_is_found(pipeline: Path) -> None:
    index = pipeline / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    for content in ("{}", "[]", '{"weight_map": {}}', "{"):
        index.write_text(content)
        (problem,) = pipeline_problems(pipeline)
        assert str(index) in problem


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    assert model_problems(tmp_path / "none") == [f"{tmp_path / 'none'}: no such folder"]
    assert pipeline_problems(tmp_path / "none") == [f"{tmp_path / 'none'}: no such folder"]
