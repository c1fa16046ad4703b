"""The parts of the model as ONNX graphs: dynamic batch, resolution and text length, weights as external data.

Shape suffixes: B batch, C channels, H W latent height and width, L context rows, D widths, P pooled width,
N transformer blocks, R rows per mention.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_structure, tree_unflatten

OPSET = 18


class TransformerGraph(nn.Module):
    """The velocity of the adapted transformer.

    LoRA acts in it as it does in training; the layer-wise embeddings are an initialiser. Which rows of the context they
    replace is an input, so that one graph serves every prompt, and the negative one.

    Args:
        transformer: an SD3Transformer2DModel whose LoRA, if any, is active or folded in.
        Y_NRD: the embeddings, or None.
    """

    Y_NRD: Tensor | None

    def __init__(self, transformer: Any, Y_NRD: Tensor | None):
        super().__init__()
        self.transformer = transformer
        self.register_buffer("Y_NRD", None if Y_NRD is None else Y_NRD.detach().clone())

    def forward(
        self,
        x_BCHW: Tensor,
        timestep_B: Tensor,
        context_BLD: Tensor,
        pooled_BP: Tensor,
        row_BL: Tensor,
        Y_NRD: Tensor | None = None,
    ) -> Any:
        """Velocities (B, C, H, W).

        Args:
            row_BL: for each context row the index of the embedding that replaces it, or -1.
            Y_NRD: embeddings in the place of the graph's own.
        """
        handles = []
        Y_NRD = self.Y_NRD if Y_NRD is None else Y_NRD
        for block, Y_RD in zip(self.transformer.transformer_blocks, Y_NRD if Y_NRD is not None else ()):
            handles.append(block.register_forward_pre_hook(_replacing(Y_RD, row_BL), with_kwargs=True))
        try:
            return self.transformer(
                hidden_states=x_BCHW,
                timestep=timestep_B,
                encoder_hidden_states=context_BLD,
                pooled_projections=pooled_BP,
                return_dict=False,
            )[0]
        finally:
            for handle in handles:
                handle.remove()


def _replacing(Y_RD: Tensor, row_BL: Tensor) -> Any:
    """A hook of one block that replaces the context rows that mean the concept."""

    def replace(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        context_BLD = kwargs["encoder_hidden_states"]
        values_BLD = Y_RD.to(context_BLD.dtype)[row_BL.clamp(min=0)]
        replaced_BLD = torch.where((row_BL >= 0)[..., None], values_BLD, context_BLD)
        return args, {**kwargs, "encoder_hidden_states": replaced_BLD}

    return replace


class ClipGraph(nn.Module):
    """A CLIP text encoder as SD3 reads it: the last layer but one, and the projected vector."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        found = self.encoder(ids_BL, output_hidden_states=True)
        return found.hidden_states[-2], found.text_embeds


class T5Graph(nn.Module):
    """The T5 encoder's last layer."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.encoder(ids_BL)[0]


class DecoderGraph(nn.Module):
    """The autoencoder's decoder, from scaled latents to pixels in [-1, 1].

    In float32: half precision overflows in it, and the pictures are black.
    """

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae.float()
        self.scale, self.shift = float(vae.config.scaling_factor), float(vae.config.shift_factor)

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        pixels_BCHW: Tensor = self.vae.decode(latents_BCHW / self.scale + self.shift, return_dict=False)[0]
        return pixels_BCHW.clamp(-1, 1)


def write_graph(
    module: nn.Module,
    examples: Sequence[Tensor | list[Tensor]],
    file: Path,
    *,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
) -> None:
    """Export one module; the weights go into `<file>.data` beside it, which has no limit of 2 GB.

    Args:
        examples: what the module is called with, one tensor per input; a dynamic dimension is 2 or more in each.
        inputs: input name -> its dynamic dimensions with their names; equal names are equal sizes.
        outputs: output names.
    """
    names = sorted({name.removeprefix("2*") for dynamic in inputs.values() for name in dynamic.values()})
    known: dict[str, Any] = {name: torch.export.Dim(name, min=1, max=1 << 20) for name in names}
    known |= {f"2*{name}": 2 * known[name] for name in names}
    flat = [{axis: known[name] for axis, name in dynamic.items()} for dynamic in inputs.values()]
    shapes = tree_unflatten(flat, tree_structure(tuple(examples)))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(examples),
            str(file),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
