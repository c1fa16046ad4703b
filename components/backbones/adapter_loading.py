"""Between an adapter folder and an adapter of a loaded backbone; whatever does not fit is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.backbones import adapter_folder
from components.backbones.interface import TextEncoding
from components.backbones.lora import expected_modules
from components.errors import InvalidInput

if TYPE_CHECKING:
    from components.backbones.sd3 import SD3Backbone

_EFFECT = 1e-6
"""Least relative change of the velocity that counts as an effect of an adapter."""


def save(backbone: SD3Backbone, name: str, folder: Path, *, blocks: Sequence[int] | None = None) -> None:
    """Write the weight files of the adapter into an existing folder; the caller adds the rest and the manifest.

    Args:
        blocks: keep the LoRA of these blocks only.
    """
    adapter = backbone.adapted[name]
    lora, weights = adapter.lora, backbone.parameters(name).get("lora", {})
    if lora is not None and blocks is not None:
        lora = lora.model_copy(update={"blocks": tuple(blocks)})
        kept = expected_modules(backbone.transformer, blocks)
        weights = {key: value for key, value in weights.items() if key.rpartition(".lora_")[0] in kept}
    adapter_folder.write(
        folder,
        adapter_folder.AdapterFiles(
            concept=adapter.concept,
            base_fingerprint=backbone.fingerprint,
            placeholder=backbone.settings.placeholder,
            rows=backbone.tokenizer.rows_per_mention,
            lora=lora,
            lora_weights=weights,
            embeddings_NRD=adapter.embeddings.Y_NRD if adapter.embeddings is not None else None,
            weights=adapter.weights,
        ),
    )


def load(backbone: SD3Backbone, folder: Path, name: str) -> None:
    """Load an adapter folder under a name; it stays frozen.

    Raises:
        IntegrityError: the folder does not match its manifest.
        InvalidInput: made for another base or placeholder, keys that match nothing or are missing, wrong shapes, values
            that are not finite, or an adapter that changes nothing.
    """
    files = _read_fitting(backbone, folder)
    try:
        backbone.create_adapter(
            name,
            concept=files.concept,
            lora=files.lora,
            embeddings_NRD=files.embeddings_NRD,
            weights=files.weights,
        )
    except ValueError as error:
        raise InvalidInput(str(error), file=folder) from error
    try:
        if files.lora is not None:
            _copy_lora(backbone, name, files, folder)
        assert_has_effect(backbone, name)
    except InvalidInput as error:
        backbone.remove_adapter(name)
        raise InvalidInput(error.problem, file=folder, field=error.field, mend=error.mend) from error


def _read_fitting(backbone: SD3Backbone, folder: Path) -> adapter_folder.AdapterFiles:
    """The files of an adapter folder, if it was made for this base and its placeholder."""
    files = adapter_folder.read(folder)
    if files.base_fingerprint != backbone.fingerprint:
        raise InvalidInput(
            f"made for the base {files.base_fingerprint[:12]}, this is {backbone.fingerprint[:12]}",
            file=folder,
            mend="use the base it was trained on, or train it again",
        )
    if (files.placeholder, files.rows) != (backbone.settings.placeholder, backbone.tokenizer.rows_per_mention):
        raise InvalidInput(
            f"trained with the placeholder {files.placeholder!r} of {files.rows} rows",
            file=folder,
            field="base.placeholder",
            mend="set the profile's placeholder to it",
        )
    return files


def replace(backbone: SD3Backbone, folder: Path, name: str) -> None:
    """Put the adapter of a folder in the place of a loaded one: its values are overwritten, nothing is reloaded.

    Adapters of one family share rank and targets; one that does not, or that changes weights of the base, is loaded
    anew under the same name.

    Raises:
        IntegrityError, InvalidInput: as `load`; what was loaded stays as it was.
    """
    files, before = _read_fitting(backbone, folder), backbone.adapted[name]
    shape = None if files.embeddings_NRD is None else files.embeddings_NRD.shape
    held = None if before.embeddings is None else before.embeddings.Y_NRD.shape
    if files.lora != before.lora or shape != held or files.weights or before.weights:
        load(backbone, folder, f"{name}_next")  # whether it can be used shows before the old one goes
        backbone.remove_adapter(f"{name}_next")
        backbone.remove_adapter(name)
        load(backbone, folder, name)
        return
    kept = {
        kind: {key: value.detach().clone() for key, value in named.items()}
        for kind, named in backbone.parameters(name).items()
    }
    try:
        if files.lora is not None:
            _copy_lora(backbone, name, files, folder)
        if files.embeddings_NRD is not None:
            backbone.adapted.load_embeddings(name, files.embeddings_NRD)
        backbone.adapted.rename_concept(name, files.concept)
        assert_has_effect(backbone, name)
    except InvalidInput as error:
        backbone.adapted.rename_concept(name, before.concept)
        if "lora" in kept:
            backbone.adapted.load_lora(name, kept["lora"])
        if "embeddings" in kept:
            backbone.adapted.load_embeddings(name, kept["embeddings"]["Y_NRD"])
        raise InvalidInput(error.problem, file=folder) from error


def _copy_lora(backbone: SD3Backbone, name: str, files: adapter_folder.AdapterFiles, folder: Path) -> None:
    expected = {key: tuple(value.shape) for key, value in backbone.parameters(name)["lora"].items()}
    found = {key: tuple(value.shape) for key, value in files.lora_weights.items()}
    if wrong := sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)):
        key = wrong[0]
        problem = f"{len(wrong)} tensors do not fit this base: {key} is {found.get(key)}, not {expected.get(key)}"
        raise InvalidInput(problem, file=folder)
    backbone.adapted.load_lora(name, dict(files.lora_weights))


@torch.no_grad()
def assert_has_effect(backbone: SD3Backbone, name: str) -> None:
    """The adapter changes the velocity at a fixed random input.

    Raises:
        InvalidInput: it does not (zero weights, weights that were not applied), or the velocity is not finite.
    """
    config, generator = backbone.transformer.config, torch.Generator().manual_seed(0)
    side = 8 * int(config.patch_size)
    length = backbone.tokenizer.clip_length + backbone.tokenizer.max_sequence_length
    rows = (1, *(backbone.tokenizer.clip_length + position for position in range(backbone.tokenizer.t5_tokens)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(backbone.device, backbone.adapted.dtype)

    text = TextEncoding(
        draw(1, length, config.joint_attention_dim), draw(1, config.pooled_projection_dim), ({"": rows},)
    )
    x_BCHW, t_B = draw(1, config.in_channels, side, side), torch.full((1,), 0.5, device=backbone.device)
    base, adapted = backbone.velocity(x_BCHW, t_B, text, None), backbone.velocity(x_BCHW, t_B, text, name)
    change = float((adapted - base).norm() / base.norm().clamp_min(1e-12))
    if not change > _EFFECT:  # also where it is not a number
        raise InvalidInput(f"the adapter {name!r} changes the model by {change:.1e}: it has no effect")
