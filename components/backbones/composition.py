"""Several concepts in one image: the adapters of each, acting together under one name.

    compose(backbone, "both", ["star", "heart"], how="merge")
    backbone.sample(..., adapter="both")

In the prompt each concept is written `<name>`; its embeddings are always those of its own adapter. What differs is
whose LoRA or weight differences act:

- `merge`: the sum of all, W + sum_i dW_i.
- `fusion`: gradient fusion (Mix-of-Show, Gu et al. 2023), per layer the W with the least sum_i ||W X_i - W_i X_i||^2.
  Mix-of-Show finds it by gradient descent; a sum of squares has a closed form.
- `switch`: one adapter at a time, the next after every 5 steps (Multi-LoRA Composition, Zhong et al. 2024).
- `composite`: the mean of each adapter's guided prediction (the same paper); a step costs one pass for each adapter,
  with the other three one in all.

None of them trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from components.backbones.adapted import Composition
from components.backbones.lora import layers_of
from components.backbones.weights import module_of

if TYPE_CHECKING:
    from components.backbones.sd3 import SD3Backbone

How = Literal["merge", "fusion", "switch", "composite"]
Earlier = Literal["fold", "stack"]
HOWS: tuple[How, ...] = get_args(How)
DEFAULT: How = "merge"
"""Pure adapters are meant to change their concept alone, so that their sum changes each; and it costs one pass."""

_RIDGE = 1e-4
"""Of the mean square of the inputs: in directions that no concept's inputs have, fusion is the plain sum."""
_FUSION_STEPS, _FUSION_IMAGES, _GUIDANCE = 8, 2, 4.0


def compose(
    backbone: SD3Backbone,
    name: str,
    adapters: Sequence[str],
    how: How = DEFAULT,
    *,
    scales: Sequence[float] | None = None,
    texts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> None:
    """Let `name` stand for several loaded adapters, wherever an adapter's name is asked for in sampling.

    The adapters have to stay loaded; `backbone.remove_adapter(name)` ends it.

    Args:
        adapters: names of loaded adapters.
        scales: factor of each adapter's weights, `merge` only; default 1. With a single adapter this is its scale at
            inference.
        texts: adapter -> the prompt whose activations are that adapter's X_i in `fusion`; default `<concept>`.
        seed: of the noise that `fusion` starts from.

    Raises:
        ValueError: no adapter, the name is taken, or scales where there are none to have.
        InvalidInput: an adapter is not loaded.
    """
    parts = [backbone.adapted[adapter] for adapter in adapters]
    if not parts or (scales is not None and (how != "merge" or len(scales) != len(parts))):
        raise ValueError(f"{len(parts)} adapters to {how}, {scales} as their scales")
    if how in ("switch", "composite"):
        backbone.adapted.add_composition(name, Composition(tuple(adapters), how))
        return
    differences = [differences_of(backbone, adapter) for adapter in adapters]
    factors = scales or [1.0] * len(parts)
    combined = _sum(differences, factors)
    if how == "fusion":
        texts = texts or {}
        squares = [
            _input_squares(backbone, part.name, texts.get(part.name, f"<{part.concept}>"), combined, seed)
            for part in parts
        ]
        combined = {
            key: fuse(
                [each.get(key, torch.zeros_like(plain)) for each in differences],
                [square[key] for square in squares],
            )
            if key in squares[0]
            else plain
            for key, plain in combined.items()
        }
    only = parts[0] if len(parts) == 1 else None
    if not combined and only is None:  # embeddings alone: they act by the concepts' names
        backbone.adapted.add_composition(name, Composition(tuple(adapters[:1]), "composite"))
        return
    embeddings = None if only is None or only.embeddings is None else only.embeddings.Y_NRD
    concept = "" if only is None else only.concept
    backbone.create_adapter(name, concept=concept, weights=combined, embeddings_NRD=embeddings)


@contextmanager
def on_top_of(backbone: SD3Backbone, adapters: Sequence[str], how: Earlier) -> Iterator[None]:
    """Within, the base is the model that has these loaded adapters: it answers what is asked of the base, and other
    adapters add to it. So concepts are learned one after the other.

    Args:
        how: `fold`: their weights are added to the base's, which costs a step nothing; `stack`: their LoRA are computed
            beside it, which costs no memory. Both give the same velocities, up to rounding.
    """
    if how == "fold":
        with backbone.adapted.on_top_of([], sum_of(backbone, adapters)):
            yield
        return
    parts = [backbone.adapted[adapter] for adapter in adapters]
    weights = _sum(
        [{key: value.detach() for key, value in part.acting_weights.items()} for part in parts], [1.0] * len(parts)
    )
    with backbone.adapted.on_top_of([part.name for part in parts if part.lora is not None], weights):
        yield


def sum_of(backbone: SD3Backbone, adapters: Sequence[str]) -> dict[str, Tensor]:
    """What several adapters together add to the base's weights."""
    return _sum([differences_of(backbone, adapter) for adapter in adapters], [1.0] * len(adapters))


@torch.no_grad()
def differences_of(backbone: SD3Backbone, adapter: str) -> dict[str, Tensor]:
    """What an adapter adds to the base's weights: name -> difference; LoRA multiplied out."""
    found = {name: value.detach() for name, value in backbone.adapted[adapter].acting_weights.items()}
    for name, layer in layers_of(backbone.transformer, adapter).items():
        found[f"{name}.weight"] = layer.get_delta_weight(adapter).float()
    return found


def _sum(differences: Sequence[Mapping[str, Tensor]], factors: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for each, factor in zip(differences, factors, strict=True):
        for name, value in each.items():
            total[name] = total[name] + factor * value if name in total else factor * value
    return total


def fuse(differences: Sequence[Tensor], squares: Sequence[Tensor]) -> Tensor:
    """The difference D with the least sum_i ||(D - D_i) X_i||^2, where no X_i reaches: the plain sum of all D_i.

    Args:
        differences: D_i, each (out, in).
        squares: X_i X_i^T, each (in, in).
    """
    device, dtype = differences[0].device, differences[0].dtype
    each = [value.double().cpu() for value in differences]
    square = [value.double().cpu() for value in squares]
    total = torch.stack(square).sum(0)
    ridge = _RIDGE * total.diagonal().mean().clamp_min(1e-30)
    right = torch.stack([d @ s for d, s in zip(each, square, strict=True)]).sum(0) + ridge * torch.stack(each).sum(0)
    left = total + ridge * torch.eye(len(total), dtype=torch.float64)
    return torch.linalg.solve(left, right, left=False).to(device, dtype)


def _input_squares(
    backbone: SD3Backbone, adapter: str, text: str, names: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """X X^T of the inputs of each linear layer among `names`, over a short sampling of the text by the adapter."""
    prompts = backbone.encode_text([text] * _FUSION_IMAGES)
    with _recording(backbone.transformer, names) as squares:
        backbone.sample_latents(
            prompts,
            backbone.encode_text([""]),
            seeds=range(seed, seed + _FUSION_IMAGES),
            steps=_FUSION_STEPS,
            guidance_scale=_GUIDANCE,
            adapter=adapter,
        )
    return squares


@contextmanager
def _recording(transformer: nn.Module, names: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    squares: dict[str, Tensor] = {}
    handles = []
    for name in names:
        module, attribute = module_of(transformer, name)
        if attribute != "weight" or not isinstance(module, nn.Linear):
            continue  # biases, norms, convolutions: the plain sum

        def record(module: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
            x_KI = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).float()
            squares[name] = squares[name] + x_KI.T @ x_KI if name in squares else x_KI.T @ x_KI

        handles.append(module.register_forward_pre_hook(record))
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
