"""A concept for ONNX Runtime: every part of the model as a graph, the tokenizers, and what a sampler has to know."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components.backbones import lora
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.export import onnx_graphs as graphs
from components.files import atomic_folder, write_json

FACTS = "purecc_onnx.json"
TRANSFORMER, DECODER, ADAPTER = "transformer.onnx", "vae_decoder.onnx", "weights.onnx_adapter"
ENCODERS = ("text_encoder.onnx", "text_encoder_2.onnx", "text_encoder_3.onnx")
FORMAT = 1


def export_onnx(backbone: SD3Backbone, adapter: str, out: Path, sampling: Mapping[str, Any]) -> Path:
    """Export a base with one loaded adapter folded in; the folder takes its name only when it is whole.

    The adapter's embeddings are an initialiser of the transformer's graph. Afterwards the adapter is still loaded, and
    the base is what it was.

    Args:
        backbone: the base; it has to be in float32.
        adapter: name of the loaded adapter.
        sampling: default `steps` and `guidance_scale`.

    Raises:
        InvalidInput: the exporter is not installed, or the base is not in float32.
    """
    require_exportable(backbone)
    with atomic_folder(out) as folder:
        write_shared(backbone, folder)
        _transformer_graph(backbone, adapter, folder)
        write_json(folder / FACTS, {**facts_of(backbone, sampling), "concept": backbone.adapted[adapter].concept})
    return out


def require_exportable(backbone: SD3Backbone) -> None:
    """Raises InvalidInput where the exporter is not installed, or the base is not in float32."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"the export needs onnx and onnxscript: {error}", mend="pip install 'purecc[onnx]'"
        ) from error
    if backbone.settings.dtype != "float32":
        raise InvalidInput(
            f"the base is loaded as {backbone.settings.dtype}", field="base.dtype", mend="export with float32"
        )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def write_shared(backbone: SD3Backbone, folder: Path) -> None:
    """Everything but the transformer: text encoders, decoder, tokenizers, noise levels."""
    _text_graphs(backbone, folder)
    _decoder_graph(backbone, folder)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        if (backbone.folder / name).is_dir():
            shutil.copytree(backbone.folder / name, folder / name)


def facts_of(backbone: SD3Backbone, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler has to know of the base."""
    channels, height, _ = backbone.latent_shape
    return {
        "format": FORMAT,
        "base_fingerprint": backbone.fingerprint,
        "placeholder": backbone.settings.placeholder,
        "max_sequence_length": backbone.settings.max_sequence_length,
        "resolution": backbone.settings.resolution,
        "latent_channels": channels,
        "pixels_per_latent": backbone.settings.resolution // height,
        "context_width": int(backbone.transformer.config.joint_attention_dim),
        "steps": int(sampling["steps"]),
        "guidance_scale": float(sampling["guidance_scale"]),
    }


def _text_graphs(backbone: SD3Backbone, folder: Path) -> None:
    encoders = backbone.text_encoders()
    ids_BL = torch.ones((2, backbone.tokenizer.clip_length), dtype=torch.long, device=backbone.device)
    for encoder, name in ((encoders.clip, ENCODERS[0]), (encoders.clip_2, ENCODERS[1])):
        graphs.write_graph(
            graphs.ClipGraph(encoder),
            [ids_BL],
            folder / name,
            inputs={"ids": {0: "batch"}},
            outputs=("hidden", "pooled"),
        )
    if encoders.t5 is not None:
        ids_BL = torch.ones((2, backbone.settings.max_sequence_length), dtype=torch.long, device=backbone.device)
        graphs.write_graph(
            graphs.T5Graph(encoders.t5),
            [ids_BL],
            folder / ENCODERS[2],
            inputs={"ids": {0: "batch", 1: "length"}},
            outputs=("hidden",),
        )


def _decoder_graph(backbone: SD3Backbone, folder: Path) -> None:
    latents_BCHW = torch.randn((2, *backbone.latent_shape), device=backbone.device)
    graphs.write_graph(
        graphs.DecoderGraph(backbone.autoencoder()),
        [latents_BCHW],
        folder / DECODER,
        inputs={"latents": {0: "batch", 2: "height", 3: "width"}},
        outputs=("pixels",),
    )


def transformer_examples(backbone: SD3Backbone) -> list[torch.Tensor]:
    """One tensor of each input of the transformer's graph."""
    config = backbone.transformer.config
    length = backbone.tokenizer.clip_length + backbone.settings.max_sequence_length
    examples = [
        torch.randn((2, *backbone.latent_shape)),
        torch.full((2,), 500.0),
        torch.randn((2, length, config.joint_attention_dim)),
        torch.randn((2, config.pooled_projection_dim)),
        torch.full((2, length), -1, dtype=torch.long),
    ]
    return [example.to(backbone.device) for example in examples]


TRANSFORMER_INPUTS: Mapping[str, Mapping[int, str]] = {
    "latents": {0: "batch", 2: "2*rows", 3: "2*columns"},
    "timestep": {0: "batch"},
    "context": {0: "batch", 1: "length"},
    "pooled": {0: "batch"},
    "concept_rows": {0: "batch", 1: "length"},
}


def _transformer_graph(backbone: SD3Backbone, adapter: str, folder: Path) -> None:
    found = backbone.adapted[adapter]
    Y_NRD = None if found.embeddings is None else found.embeddings.Y_NRD
    with lora.folded(backbone.transformer, adapter if found.lora is not None else None, found.weights):
        graphs.write_graph(
            graphs.TransformerGraph(backbone.transformer, Y_NRD),
            transformer_examples(backbone),
            folder / TRANSFORMER,
            inputs=TRANSFORMER_INPUTS,
            outputs=("velocity",),
        )
