"""The weight files of an adapter folder (DESIGN section 3).

```
adapter_config.json, adapter_model.safetensors   peft: PeftModel.from_pretrained(transformer, folder)
pytorch_lora_weights.safetensors                 diffusers: pipe.load_lora_weights(folder)
concept_embeddings.safetensors                   layer-wise embeddings; its metadata says which concept and which base
weight_differences.safetensors                   what full fine-tuning adds to the base's own weights, exact (float32)
```
The two LoRA formats hold the same weights; both are absent if the adapter has no LoRA. The embeddings file is always
there, without a tensor if the adapter has no embeddings, because the identity of the adapter stands in its metadata.
Only adapters that train weights of the base have the last file; of them peft and diffusers know nothing, so that they
are loaded by `SD3Backbone.load_adapter` or as the registered model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.backbones.lora import TARGETS, lora_config
from components.errors import InvalidInput
from components.files import verify_manifest
from components.settings import LoraSettings

CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
EMBEDDINGS = "concept_embeddings.safetensors"
WEIGHTS = "weight_differences.safetensors"
FORMAT = "1"
_PEFT_PREFIX = "base_model.model."
_TENSOR = "concept_embeddings"


@dataclass(frozen=True)
class AdapterFiles:
    """What the weight files of an adapter folder hold.

    Attributes:
        concept: name of the concept.
        base_fingerprint: the base the adapter belongs to.
        placeholder: the word that stands for the concept before the text encoders.
        rows: R, context rows per mention.
        lora: rank, alpha and blocks, or None.
        lora_weights: `<module>.lora_A.weight` and so on -> tensor.
        embeddings_NRD: layer-wise embeddings, or None.
        weights: name of a weight of the base -> the difference to it.
    """

    concept: str
    base_fingerprint: str
    placeholder: str
    rows: int
    lora: LoraSettings | None
    lora_weights: Mapping[str, Tensor]
    embeddings_NRD: Tensor | None
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def write(folder: Path, files: AdapterFiles) -> None:
    """Write the weight files into an existing folder (that of `components.files.atomic_folder`)."""
    metadata = {
        "purecc_format": FORMAT,
        "concept": files.concept,
        "base_fingerprint": files.base_fingerprint,
        "placeholder": files.placeholder,
        "rows": ",".join(["clip", *["t5"] * (files.rows - 1)]),
    }
    tensors = {} if files.embeddings_NRD is None else {_TENSOR: _cpu(files.embeddings_NRD)}
    save_file(tensors, folder / EMBEDDINGS, metadata=metadata)
    _order_metadata(folder / EMBEDDINGS)
    if files.weights:
        save_file({name: _cpu(value) for name, value in files.weights.items()}, folder / WEIGHTS, {"format": "pt"})
    if files.lora is None:
        return
    from diffusers import StableDiffusion3Pipeline

    weights = {name: _cpu(value) for name, value in files.lora_weights.items()}
    config = lora_config(files.lora)
    config.inference_mode = True
    described = {**config.to_dict(), "target_modules": sorted(TARGETS)}  # peft keeps a set, in no order
    config.save_pretrained(str(folder))
    stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(
        json.dumps({**stated, "target_modules": sorted(TARGETS)}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    save_file({_PEFT_PREFIX + name: value for name, value in weights.items()}, folder / PEFT_WEIGHTS, {"format": "pt"})
    # without this metadata diffusers takes alpha = rank
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=weights, transformer_lora_adapter_metadata=described
    )
    _order_metadata(folder / DIFFUSERS_WEIGHTS)


def read(folder: Path) -> AdapterFiles:
    """Read and check an adapter folder.

    Raises:
        IntegrityError: the folder does not match its SHA256SUMS.
        InvalidInput: a file is missing or corrupt, a key unknown, a value not finite; it is named.
    """
    if not folder.is_dir():
        raise InvalidInput("no such adapter folder", file=folder)
    verify_manifest(folder, foreign=True)
    metadata, tensors = _read_safetensors(folder / EMBEDDINGS)
    if metadata.get("purecc_format") != FORMAT:
        raise InvalidInput(
            f"format {metadata.get('purecc_format')!r}, this version reads {FORMAT!r}", file=folder / EMBEDDINGS
        )
    if set(tensors) - {_TENSOR}:
        raise InvalidInput(f"unknown tensors {sorted(set(tensors) - {_TENSOR})}", file=folder / EMBEDDINGS)
    if _TENSOR in tensors and tensors[_TENSOR].ndim != 3:
        raise InvalidInput(f"{_TENSOR} has {tensors[_TENSOR].ndim} dimensions, not 3", file=folder / EMBEDDINGS)
    missing = {"concept", "base_fingerprint", "placeholder", "rows"} - set(metadata)
    if missing:
        raise InvalidInput(f"missing metadata {sorted(missing)}", file=folder / EMBEDDINGS)
    lora, weights = _read_lora(folder)
    return AdapterFiles(
        concept=metadata["concept"],
        base_fingerprint=metadata["base_fingerprint"],
        placeholder=metadata["placeholder"],
        rows=len(metadata["rows"].split(",")),
        lora=lora,
        lora_weights=weights,
        embeddings_NRD=tensors.get(_TENSOR),
        weights=_read_safetensors(folder / WEIGHTS)[1] if (folder / WEIGHTS).exists() else {},
    )


def read_identity(folder: Path) -> dict[str, str]:
    """Concept, base fingerprint, placeholder and rows of an adapter folder, by the header of its embeddings file.

    Raises:
        InvalidInput: the file is missing or corrupt.
    """
    return _read_safetensors(folder / EMBEDDINGS)[0]


def _order_metadata(file: Path) -> None:
    """Sort a safetensors file's metadata, which the library writes in random order: equal adapters, equal bytes."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data stays aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _cpu(value: Tensor) -> Tensor:
    return value.detach().to("cpu").contiguous()


def _read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not file.is_file():
        raise InvalidInput("missing file of the adapter", file=file)
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"not a readable safetensors file: {error}", file=file) from error
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise InvalidInput(f"{name} holds {value.dtype}, not floating-point numbers", file=file)
        if not torch.isfinite(value).all():
            raise InvalidInput(f"{name} holds values that are not finite", file=file, mend="train the adapter again")
    return metadata, tensors


def _read_lora(folder: Path) -> tuple[LoraSettings | None, dict[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        if (folder / PEFT_WEIGHTS).exists():
            raise InvalidInput("weights without their configuration", file=folder / CONFIG)
        return None, {}
    try:
        stated: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidInput(f"not JSON: {error}", file=folder / CONFIG) from error
    if not isinstance(stated, dict):
        raise InvalidInput("not a JSON object", file=folder / CONFIG)
    _, tensors = _read_safetensors(folder / PEFT_WEIGHTS)
    weights = {name.removeprefix(_PEFT_PREFIX): value for name, value in tensors.items()}
    try:
        lora = LoraSettings(rank=stated["r"], alpha=stated["lora_alpha"], blocks=stated.get("layers_to_transform"))
    except (KeyError, ValueError) as error:
        raise InvalidInput(f"no rank and alpha: {error}", file=folder / CONFIG) from error
    # before layers of that rank are made
    downward = {key: value for key, value in weights.items() if key.endswith(".lora_A.weight")}
    if not downward:
        raise InvalidInput("no LoRA weights", file=folder / PEFT_WEIGHTS)
    for key, value in downward.items():
        if value.ndim != 2 or value.shape[0] != lora.rank:
            raise InvalidInput(f"{key} is {tuple(value.shape)}, not of rank {lora.rank}", file=folder / PEFT_WEIGHTS)
    expected = lora_config(lora).to_dict()
    # what changes the arithmetic and is not what this project writes would be ignored in silence
    for name in (
        "peft_type",
        "use_dora",
        "use_rslora",
        "bias",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "layers_pattern",
    ):
        if name in stated and stated[name] != expected[name]:
            raise InvalidInput(f"{stated[name]!r} is not supported", file=folder / CONFIG, field=name)
    targets = stated.get("target_modules")
    if not isinstance(targets, list) or sorted(map(str, targets)) != sorted(TARGETS):
        raise InvalidInput(f"other modules than {list(TARGETS)}", file=folder / CONFIG, field="target_modules")
    return lora, weights
