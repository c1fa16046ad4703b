"""LoRA on the attention projections of an MM-DiT, by name on one shared transformer.

peft does the arithmetic; what stands here is which modules are adapted, an initialisation that depends on a seed alone,
and a switch that neither copies weights nor touches `requires_grad` (peft's own `set_adapter` resets it).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from components.backbones.weights import base_weights
from components.errors import InvalidInput
from components.settings import LoraSettings

ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
SECOND_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_BLOCKS = "transformer_blocks"
TARGETS = (*(f"attn.{name}" for name in ATTENTION), *(f"attn2.{name}" for name in SECOND_ATTENTION))


def expected_modules(transformer: nn.Module, blocks: Sequence[int] | None = None) -> set[str]:
    """Names of the modules that LoRA has to adapt: every attention projection of every block, or of these blocks.

    The last block drops its context stream (`context_pre_only`), hence has no `to_add_out`; blocks with dual attention
    have `attn2` besides.
    """
    names = set()
    for index, block in enumerate(transformer.transformer_blocks):  # type: ignore[arg-type]
        if blocks is not None and index not in blocks:
            continue
        attention = [name for name in ATTENTION if not (block.context_pre_only and name == "to_add_out")]
        names |= {f"transformer_blocks.{index}.attn.{name}" for name in attention}
        if block.use_dual_attention:
            names |= {f"transformer_blocks.{index}.attn2.{name}" for name in SECOND_ATTENTION}
    return names


def lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    """Name -> LoRA layer, in the order of the model."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def layers_of(transformer: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    """Name -> LoRA layer that holds weights of that adapter."""
    return {name: layer for name, layer in lora_layers(transformer).items() if adapter in layer.lora_A}


def lora_config(settings: LoraSettings) -> LoraConfig:
    """peft's description of such an adapter."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # annotated int; peft computes with any number
        target_modules=list(TARGETS),
        layers_to_transform=None if settings.blocks is None else list(settings.blocks),
        layers_pattern=None if settings.blocks is None else _BLOCKS,
        lora_dropout=0.0,
        bias="none",
    )


def add_lora(transformer: nn.Module, adapter: str, settings: LoraSettings, *, seed: int) -> None:
    """Add an adapter: A uniform in +-1/sqrt(fan-in) (peft's Kaiming default) from the seed, B zero, all frozen.

    Raises:
        InvalidInput: the settings name a block that the transformer does not have.
        RuntimeError: the targets did not match every projection of every block (another architecture).
    """
    count = len(transformer.transformer_blocks)  # type: ignore[arg-type]
    if strange := [block for block in settings.blocks or () if not 0 <= block < count]:
        raise InvalidInput(f"no block {strange[0]}: this base has 0 to {count - 1}", field="learning.lora.blocks")
    config = lora_config(settings)
    training = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    # peft initialises from the global generator, which is overwritten below, and warns of every second adapter
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        transformer.add_adapter(config, adapter_name=adapter)  # type: ignore[operator]
    for parameter in training:  # peft froze what other adapters train
        parameter.requires_grad_(True)
    layers = layers_of(transformer, adapter)
    expected = expected_modules(transformer, settings.blocks)
    if set(layers) != expected:
        wrong = ", ".join(sorted(set(layers) ^ expected)[:5])
        raise RuntimeError(f"LoRA targets do not match the attention projections of this transformer: {wrong}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(layers):
            down, up = _linear(layers[name].lora_A, adapter), _linear(layers[name].lora_B, adapter)
            bound = 1.0 / math.sqrt(down.in_features)
            # peft takes the base's dtype; in bfloat16 the updates of a small learning rate would be rounded away
            down.float()
            up.float()
            down.weight.copy_((2.0 * torch.rand(down.weight.shape, generator=generator) - 1.0) * bound)
            up.weight.zero_()
    for parameter in parameters_of(transformer, adapter).values():
        parameter.requires_grad_(False)


def remove_lora(transformer: nn.Module, adapter: str) -> None:
    """Remove an adapter's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells which other adapter it activates: none is, see `Switch`
        transformer.delete_adapters(adapter)  # type: ignore[operator]


def parameters_of(transformer: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Name in peft's saved form (`<module>.lora_A.weight`) -> parameter."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in layers_of(transformer, adapter).items():
        for matrix, modules in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            weight = _linear(modules, adapter).weight
            assert isinstance(weight, nn.Parameter)
            found[f"{name}.{matrix}.weight"] = weight
    return found


def _linear(modules: nn.ModuleDict, adapter: str) -> nn.Linear:
    module = modules[adapter]
    assert isinstance(module, nn.Linear)
    return module


def load_parameters(transformer: nn.Module, adapter: str, values: Mapping[str, Tensor]) -> None:
    """Copy values, named as in `parameters_of`, into an adapter; names and shapes have been checked."""
    with torch.no_grad():
        for name, parameter in parameters_of(transformer, adapter).items():
            parameter.copy_(values[name])


@contextmanager
def folded(
    transformer: nn.Module, adapter: str | None, differences: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Within, the adapter's update is part of the base's weights, W + (alpha / r) B A, and no LoRA layer acts.

    Afterwards the weights are the saved ones, bit for bit.

    Args:
        adapter: whose LoRA; None: none.
        differences: name of a weight of the base -> what is added to it besides.
    """
    updates: list[tuple[Tensor, Tensor]] = []
    for layer in layers_of(transformer, adapter).values() if adapter is not None else ():
        weight = layer.get_base_layer().weight
        assert isinstance(weight, Tensor)
        assert adapter is not None
        updates.append((weight, layer.get_delta_weight(adapter)))
    named = base_weights(transformer) if differences else {}
    updates += [(named[name], value) for name, value in (differences or {}).items()]
    kept = [(weight, weight.detach().clone()) for weight, _ in updates]
    with torch.no_grad():
        for weight, update in updates:
            weight += update.to(weight.dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in reversed(kept):
                weight.copy_(before)


def scale_lora(transformer: nn.Module, adapter: str, factor: float) -> None:
    """Let an adapter act `factor` times as strongly as it was trained."""
    for layer in layers_of(transformer, adapter).values():
        layer.set_scale(adapter, factor)


class Switch:
    """Which adapter's LoRA acts in a forward pass; outside of `active` none does.

    peft's switch walks all modules and sets `requires_grad`; this one writes two fields of each LoRA layer.
    """

    def __init__(self, transformer: nn.Module):
        self._transformer = transformer
        self._layers: list[LoraLayer] = []
        self._active: str | None = None
        self._under: tuple[str, ...] = ()

    def refresh(self) -> None:
        """Look for the LoRA layers again, after an adapter was added or removed."""
        self._layers = list(lora_layers(self._transformer).values())
        self._set(None)

    @property
    def current(self) -> str | None:
        return self._active

    def _set(self, adapter: str | None) -> None:
        acting = [*self._under, *([] if adapter is None else [adapter])]
        for layer in self._layers:
            layer._disable_adapters = not acting
            layer._active_adapter = acting
        self._active = adapter

    @contextmanager
    def under(self, adapters: Sequence[str]) -> Iterator[None]:
        """Within, the LoRA of these adapters always act, beneath the active one's and where none is active."""
        before, self._under = self._under, tuple(adapters)
        self._set(self._active)
        try:
            yield
        finally:
            self._under = before
            self._set(self._active)

    @contextmanager
    def active(self, adapter: str | None) -> Iterator[None]:
        """Within, the adapter's LoRA acts; with None the base alone."""
        before = self._active
        if before != adapter:
            self._set(adapter)
        try:
            yield
        finally:
            if before != adapter:
                self._set(before)
