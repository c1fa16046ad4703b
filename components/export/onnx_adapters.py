"""One ONNX graph of the base for many concepts: adapters act at run time, by `onnxruntime.LoraAdapter`.

The graph takes the LoRA matrices and the layer-wise embeddings as inputs that need not be given: initialisers of zeros,
by which the model is the base's, stand for what is not. A file in ONNX Runtime's adapter format holds values of such
inputs by name; named with a run, they take their place. Nothing is folded, so nothing is exported, compiled or loaded
anew when another concept is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.backbones import adapter_folder
from components.backbones.lora import layers_of
from components.backbones.sd3 import SD3Backbone
from components.errors import InvalidInput
from components.export import onnx_graphs as graphs
from components.export.onnx_folder import (
    ADAPTER,
    FACTS,
    FORMAT,
    TRANSFORMER,
    TRANSFORMER_INPUTS,
    facts_of,
    require_exportable,
    transformer_examples,
    write_shared,
)
from components.files import atomic_folder, write_json
from components.settings import LoraSettings

EMBEDDINGS = "concept_embeddings"
_MATRICES = ("lora_A", "lora_B")
_NAME = "at_run_time"  # of the adapter whose matrices become inputs


class AdaptableGraph(nn.Module):
    """The velocity of the transformer, with LoRA matrices and embeddings as inputs.

    Args:
        transformer: an SD3Transformer2DModel with LoRA that acts and whose scaling is 1.
        names: parameters of that LoRA, in the order of the inputs.
    """

    def __init__(self, transformer: Any, names: Sequence[str]):
        super().__init__()
        self.inner = graphs.TransformerGraph(transformer, None)
        self._names = [f"transformer.{name}" for name in names]

    def forward(
        self,
        x_BCHW: Tensor,
        timestep_B: Tensor,
        context_BLD: Tensor,
        pooled_BP: Tensor,
        row_BL: Tensor,
        Y_NRD: Tensor,
        matrices: list[Tensor],
    ) -> Any:
        """Velocities (B, C, H, W).

        Args:
            matrices: of each adapted layer A (rank, inputs) and alpha / rank times B (outputs, rank).
        """
        given = dict(zip(self._names, matrices, strict=True))
        arguments = (x_BCHW, timestep_B, context_BLD, pooled_BP, row_BL, Y_NRD)
        return torch.func.functional_call(self.inner, given, arguments)


def export_onnx_base(backbone: SD3Backbone, out: Path, sampling: Mapping[str, Any]) -> Path:
    """Export a base for adapters that are put in at run time; the folder takes its name only when it is whole.

    Args:
        backbone: the base, in float32.
        sampling: default `steps` and `guidance_scale`.

    Raises:
        InvalidInput: the exporter is not installed, or the base is not in float32.
    """
    require_exportable(backbone)
    with atomic_folder(out) as folder:
        write_shared(backbone, folder)
        with _adaptable(backbone) as (module, matrices):
            embeddings = torch.zeros(backbone.adapted.embedding_shape, device=backbone.device)
            optional = {EMBEDDINGS: embeddings, **matrices}
            ranked = {name: {0 if ".lora_A." in name else 1: "rank"} for name in matrices}
            graphs.write_graph(
                module,
                [*transformer_examples(backbone), embeddings, list(matrices.values())],
                folder / TRANSFORMER,
                inputs={**TRANSFORMER_INPUTS, EMBEDDINGS: {}, **ranked},
                outputs=("velocity",),
            )
        _make_optional(folder / TRANSFORMER, optional, ranked)
        write_json(folder / FACTS, {**facts_of(backbone, sampling), "concept": None})
    return out


def is_base_of(base: Path, adapter: Path) -> bool:
    """Whether the folder `base` holds the graphs of the base that the exported adapter was trained on."""
    made_for = json.loads((adapter / FACTS).read_text(encoding="utf-8"))["base_fingerprint"]
    facts = base / FACTS
    return facts.is_file() and json.loads(facts.read_text(encoding="utf-8"))["base_fingerprint"] == made_for


@contextmanager
def _adaptable(backbone: SD3Backbone) -> Iterator[tuple[AdaptableGraph, dict[str, Tensor]]]:
    """The graph, and an example of each of its matrices by the name that peft saves it under."""
    lora = LoraSettings(rank=2, alpha=2.0)
    backbone.create_adapter(_NAME, concept="", lora=lora, embeddings_NRD=None)
    try:
        names: dict[str, str] = {}
        for module in layers_of(backbone.transformer, _NAME):
            names |= {f"{module}.{matrix}.weight": f"{module}.{matrix}.{_NAME}.weight" for matrix in _MATRICES}
        values = backbone.parameters(_NAME)["lora"]
        with backbone.adapted.on_top_of([_NAME], {}):
            graph = AdaptableGraph(backbone.transformer, list(names.values()))
            yield graph, {name: values[name].detach().clone() for name in names}
    finally:
        backbone.remove_adapter(_NAME)


def _make_optional(file: Path, optional: Mapping[str, Tensor], ranked: Mapping[str, Mapping[int, str]]) -> None:
    """Give inputs of a graph a default: zeros, of rank 1 where the rank is free."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    for name, value in optional.items():
        shape = [1 if axis in ranked.get(name, {}) else size for axis, size in enumerate(value.shape)]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    onnx.save(model, str(file))


def export_onnx_adapter(adapter: Path, out: Path) -> Path:
    """Write an adapter folder in ONNX Runtime's adapter format, for the graph of `export_onnx_base`.

    Raises:
        IntegrityError: the folder does not match its manifest.
        InvalidInput: ONNX Runtime is not installed; or the adapter changes weights of the base, or has embeddings for
            the first block alone, for which the graph has no inputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InvalidInput(f"ONNX Runtime is missing: {error}", mend="pip install 'purecc[onnx]'") from error
    files = adapter_folder.read(adapter)
    fold = "export it with its base: purecc export --format onnx"
    if files.weights:
        raise InvalidInput("it changes weights of the base, LoraAdapter knows only LoRA", file=adapter, mend=fold)
    if files.embeddings_NRD is not None and len(files.embeddings_NRD) == 1:
        raise InvalidInput("its embeddings act at the first block alone", file=adapter, mend=fold)
    values: dict[str, Tensor] = {}
    if files.embeddings_NRD is not None:
        values[EMBEDDINGS] = files.embeddings_NRD
    scaling = files.lora.alpha / files.lora.rank if files.lora is not None else 1.0
    for name, value in files.lora_weights.items():
        values[name] = value * scaling if ".lora_B." in name else value
    held = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.float().numpy()))
        for name, value in values.items()
    }
    written = onnxruntime.AdapterFormat()
    written.set_adapter_version(1)
    written.set_model_version(FORMAT)
    written.set_parameters(held)
    with atomic_folder(out) as folder:
        written.export_adapter(str(folder / ADAPTER))
        facts = {
            "format": FORMAT,
            "concept": files.concept,
            "base_fingerprint": files.base_fingerprint,
            "embeddings": files.embeddings_NRD is not None,
        }
        write_json(folder / FACTS, facts)
    return out
