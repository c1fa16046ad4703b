"""Evaluators that are published as bare state dicts: HPSv2.1 and CSD, rebuilt as transformers' own CLIP classes.

- HPSv2.1 (`xswu/HPSv2/HPS_v2.1_compressed.pt`): an open_clip ViT-H-14 under the key `state_dict`. Its reference package
  brings the longer side of a picture to 224 pixels and fills the rest with black.
- CSD (`yuxi-liu-wired/CSD/model.safetensors`, or the training checkpoint `tomg-group-umd/CSD-ViT-L/pytorch_model.bin`
  with the state dict under `model_state_dict` and `module.` before each key): OpenAI's ViT-L/14 picture tower as
  `backbone.*` without its projection, and two projections, `last_layer_style` and `last_layer_content`. Only the style
  is used. Preprocessing is CLIP's.

Both keep OpenAI's names: fused query-key-value projections, projections as (width, features). Sizes follow from the
tensors' shapes; the width of an attention head and the activation do not, they are the architecture's.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.errors import InvalidInput

_HEAD_WIDTH_H14, _HEAD_WIDTH = 80, 64
_OUTER_KEYS = ("state_dict", "model_state_dict")
# Metadata that training checkpoints carry along; none of it runs code when it is read. A numpy number is made by a
# function that moved with numpy 2, so both of its names are known.
_NUMBER: Any = np.float64(0).__reduce__()[0]
_INERT: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    _NUMBER,
    (_NUMBER, "numpy.core.multiarray.scalar"),
]
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def find_file(path: str) -> Path:
    """A local file, or the file `owner/repository/file` of the hub.

    Raises:
        InvalidInput: there is no such file, or it is neither in the local cache nor may be downloaded.
    """
    if Path(path).is_file():
        return Path(path)
    parts = path.split("/", 2)
    if path.startswith((".", "/")) or len(parts) != 3:
        raise InvalidInput(
            "no such file", file=path, field="evaluation.evaluators", mend="name a file or owner/repository/file"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2]))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"cannot be fetched: {str(error).strip().splitlines()[0]}",
            file=path,
            field="evaluation.evaluators",
            mend="download it once with `hf download` (HF_HUB_OFFLINE=0 allows a download)",
        ) from error


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without what wraps them; no code of the file is run.

    Raises:
        InvalidInput: not such a file.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with torch.serialization.safe_globals(_INERT):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidInput(
            f"no checkpoint that can be read safely: {str(error).strip().splitlines()[0]}",
            file=file,
            mend="fetch it again; checkpoints that hold more than tensors are refused",
        ) from error
    for key in _OUTER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InvalidInput("holds no state dict", file=file, mend="name the published checkpoint")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_hps(path: str) -> tuple[Any, Any]:
    """HPSv2.1 as a CLIPModel in float32, and its image processor (for pictures of the model's own size).

    Raises:
        InvalidInput: no such file, or not the state dict of an open_clip model of that architecture.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    file = find_file(path)
    state = read_state_dict(file)
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    text = {name: value for name, value in state.items() if not name.startswith("visual.") and name != "attn_mask"}
    try:
        vision_config = _vision_config(visual, head_width=_HEAD_WIDTH_H14, activation="gelu")
        vocabulary, width = text["token_embedding.weight"].shape
        config = CLIPConfig(
            text_config={
                **_tower_config(text, width, head_width=_HEAD_WIDTH, activation="gelu"),
                "vocab_size": vocabulary,
                "max_position_embeddings": text["positional_embedding"].shape[0],
                "bos_token_id": vocabulary - 2,  # as in every tokenizer of CLIP, the last two entries
                "eos_token_id": vocabulary - 1,
                "pad_token_id": vocabulary - 1,
            },
            vision_config=vision_config,
            projection_dim=visual["proj"].shape[1],
        )
        weights = {f"vision_model.{name}": value for name, value in _tower(visual, _VISION, ("proj",)).items()}
        extra = ("text_projection", "logit_scale")
        weights |= {f"text_model.{name}": value for name, value in _tower(text, _TEXT, extra).items()}
        weights["visual_projection.weight"] = visual["proj"].T
        weights["text_projection.weight"] = text["text_projection"].T
        weights["logit_scale"] = text["logit_scale"]
        model = _filled(CLIPModel, config, weights)
    except _NOT_THIS as error:
        raise _wrong(file, "HPSv2.1 (open_clip, ViT-H-14)", error) from error
    return model, CLIPImageProcessorPil(do_resize=False, do_center_crop=False)


def load_csd(path: str) -> tuple[Any, Any]:
    """CSD as a CLIPVisionModelWithProjection in float32 whose projection is the style's, and its image processor.

    Raises:
        InvalidInput: no such file, or not the state dict of CSD.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    file = find_file(path)
    state = read_state_dict(file)
    try:
        tower = {name.removeprefix("backbone."): state[name] for name in state if name.startswith("backbone.")}
        unknown = sorted(
            state.keys() - {f"backbone.{name}" for name in tower} - {"last_layer_style", "last_layer_content"}
        )
        if unknown:
            raise KeyError(unknown[0])
        settings = _vision_config(tower, head_width=_HEAD_WIDTH, activation="quick_gelu")
        config = CLIPVisionConfig(**settings, projection_dim=state["last_layer_style"].shape[1])
        weights = {f"vision_model.{name}": value for name, value in _tower(tower, _VISION, ()).items()}
        weights["visual_projection.weight"] = state["last_layer_style"].T
        model = _filled(CLIPVisionModelWithProjection, config, weights)
    except _NOT_THIS as error:
        raise _wrong(file, "CSD (ViT-L/14)", error) from error
    side = config.image_size
    return model, CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


_NOT_THIS = (KeyError, ValueError, RuntimeError, IndexError)


def _wrong(file: Path, what: str, error: Exception) -> InvalidInput:
    summary = str(error).strip().splitlines()[0]
    return InvalidInput(
        f"not the state dict of {what}: {summary}",
        file=file,
        field="evaluation.evaluators",
        mend="name the published checkpoint",
    )


def _tower_config(state: Mapping[str, Tensor], width: int, *, head_width: int, activation: str) -> dict[str, Any]:
    layers = 1 + max(int(found[1]) for name in state if (found := _BLOCK.fullmatch(name)))
    if width % head_width:
        raise ValueError(f"a width of {width} is no multiple of {head_width}")
    return {
        "hidden_size": width,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
        "hidden_act": activation,
    }


def _vision_config(state: Mapping[str, Tensor], *, head_width: int, activation: str) -> dict[str, Any]:
    width, _, patch, _ = state["conv1.weight"].shape
    patches_a_side = round((state["positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        **_tower_config(state, width, head_width=head_width, activation=activation),
        "patch_size": patch,
        "image_size": patch * patches_a_side,
    }


def _tower(state: Mapping[str, Tensor], outside: Mapping[str, str], elsewhere: tuple[str, ...]) -> dict[str, Tensor]:
    """One tower's tensors under the names that transformers gives them.

    Raises:
        KeyError: a tensor that neither a block nor `outside` knows, but for those named in `elsewhere`.
    """
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        found = _BLOCK.fullmatch(name)
        if found is None:
            if name not in elsewhere:
                result[outside[name]] = value
            continue
        layer, inner = f"encoder.layers.{found[1]}.", found[2]
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for target, part in zip("qkv", value.chunk(3), strict=True):
                result[f"{layer}self_attn.{target}_proj.{kind}"] = part
        else:
            module, kind = inner.rsplit(".", 1)
            result[f"{layer}{_IN_BLOCK[module]}.{kind}"] = value
    return result


def _filled(model_class: Any, config: Any, weights: Mapping[str, Tensor]) -> Any:
    """The model with exactly these weights: one too few, too many or of another shape is an error."""
    model = model_class(config)
    model.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, strict=True)
    return model
