"""One shared MM-DiT with adapters by name: LoRA or weight differences, layer-wise concept embeddings, or both.

Shape suffixes as in `components.backbones.interface`; N transformer blocks, R rows per mention, D inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.backbones import lora as lora_module
from components.backbones.concept_embeddings import ConceptEmbeddings, Hooks, Replacement, embedding_index
from components.backbones.interface import TextEncoding
from components.backbones.weights import WeightSwitch, base_weights
from components.errors import InvalidInput
from components.settings import LoraSettings

SWITCH_STEPS = 5
"""Steps of sampling until `switch` goes on to the next adapter, as in Multi-LoRA Composition (Zhong et al., 2024)."""


@dataclass(frozen=True)
class Adapter:
    """A named adapter of the shared transformer; it acts only while it is the one asked for.

    Attributes:
        concept: the concept's name; empty for an adapter that was made of several concepts'.
        weights: name of a weight of the base -> the difference to it, in float32; empty if there is none.
        factor: how strongly LoRA and differences act, 1 being as trained.
    """

    name: str
    concept: str
    lora: LoraSettings | None
    embeddings: ConceptEmbeddings | None
    weights: Mapping[str, nn.Parameter]
    factor: float = 1.0

    @property
    def acting_weights(self) -> Mapping[str, Tensor]:
        """The differences as they act: at `factor`, the base's weights and the trained ones interpolated."""
        if self.factor == 1:
            return self.weights
        return {key: self.factor * value for key, value in self.weights.items()}


@dataclass(frozen=True)
class Composition:
    """Several adapters under one name that act together in sampling (see `components.backbones.composition`)."""

    adapters: tuple[str, ...]
    how: Literal["switch", "composite"]

    def acting(self, step: int) -> tuple[str, ...]:
        """The adapters whose velocities are averaged in a step of sampling: all, or one in turn."""
        if self.how == "composite":
            return self.adapters
        return (self.adapters[step // SWITCH_STEPS % len(self.adapters)],)


class AdaptedTransformer:
    """The transformer and its adapters. The base's own weights never change and never train.

    Args:
        transformer: an SD3Transformer2DModel.
        train_timesteps: the factor between t in [0, 1] and the transformer's timestep.
        rows_per_mention: R.
    """

    def __init__(self, transformer: Any, *, train_timesteps: int, rows_per_mention: int):
        self.transformer = transformer.eval().requires_grad_(False)
        self._train_timesteps, self._rows = train_timesteps, rows_per_mention
        self._adapters: dict[str, Adapter] = {}
        self._compositions: dict[str, Composition] = {}
        self._switch = lora_module.Switch(transformer)
        self._weights = WeightSwitch(transformer)
        self._hooks = Hooks(list(transformer.transformer_blocks))

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.transformer.parameters()).dtype

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """(N, R, D)."""
        return len(self.transformer.transformer_blocks), self._rows, int(self.transformer.inner_dim)

    @property
    def folds(self) -> bool:
        """Whether other weights act now in the place of the base's."""
        return bool(self._weights.held)

    # adapters

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise InvalidInput(f"no adapter {name!r} is loaded", mend=f"loaded adapters: {known}")
        return self._adapters[name]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._adapters, *self._compositions)

    def create(
        self,
        name: str,
        *,
        concept: str,
        lora: LoraSettings | None,
        embeddings_NRD: Tensor | None,
        weights: Mapping[str, Tensor] | None = None,
        seed: int,
    ) -> Adapter:
        """Add an adapter, frozen: LoRA that changes nothing yet, embeddings and weight differences as given.

        Embeddings with N = 1 act at the first block's input only; the later blocks see what becomes of them.

        Raises:
            ValueError: the name is taken, there is nothing in the adapter, or a shape or a weight's name is wrong.
        """
        if name in self.names or (lora is None and embeddings_NRD is None and not weights):
            raise ValueError(f"adapter {name!r} exists, or neither LoRA, embeddings nor weights were asked for")
        if weights:
            shapes = {key: tuple(value.shape) for key, value in base_weights(self.transformer).items()}
            if wrong := sorted(key for key, value in weights.items() if shapes.get(key) != tuple(value.shape)):
                raise ValueError(
                    f"{len(wrong)} weight differences do not fit this base: {wrong[0]} is "
                    f"{tuple(weights[wrong[0]].shape)}, not {shapes.get(wrong[0])}"
                )
        embeddings = None
        if embeddings_NRD is not None:
            first = (1, *self.embedding_shape[1:])
            if tuple(embeddings_NRD.shape) not in (self.embedding_shape, first):
                raise ValueError(f"embeddings {tuple(embeddings_NRD.shape)}, the base has {self.embedding_shape}")
            embeddings = ConceptEmbeddings(embeddings_NRD.to(self.device))
        if lora is not None:
            lora_module.add_lora(self.transformer, name, lora, seed=seed)
            self._switch.refresh()
        differences = {
            key: nn.Parameter(value.detach().to(self.device).float().clone(), requires_grad=False)
            for key, value in (weights or {}).items()
        }
        self._adapters[name] = Adapter(name, concept, lora, embeddings, differences)
        return self._adapters[name]

    def add_composition(self, name: str, composition: Composition) -> None:
        """Let a name stand for several adapters.

        Raises:
            ValueError: the name is taken.
            InvalidInput: one of the adapters is not loaded.
        """
        if name in self.names:
            raise ValueError(f"adapter {name!r} exists")
        for part in composition.adapters:
            self[part]
        self._compositions[name] = composition

    def composition(self, name: str | None) -> Composition | None:
        """What a name stands for, if it is that of a composition."""
        return None if name is None else self._compositions.get(name)

    def remove(self, name: str) -> None:
        if self._compositions.pop(name, None) is not None:
            return
        adapter = self[name]
        if adapter.lora is not None:
            lora_module.remove_lora(self.transformer, name)
            self._switch.refresh()
        del self._adapters[name]

    def parameters(self, name: str) -> dict[str, dict[str, nn.Parameter]]:
        """Kind (`lora`, `embeddings`, `weights`) -> name -> parameter, for what the adapter has."""
        adapter, found = self[name], {}
        if adapter.lora is not None:
            found["lora"] = lora_module.parameters_of(self.transformer, name)
        if adapter.embeddings is not None:
            found["embeddings"] = {"Y_NRD": adapter.embeddings.Y_NRD}
        if adapter.weights:
            found["weights"] = dict(adapter.weights)
        return found

    def scale(self, name: str, factor: float) -> None:
        """Let the adapter's LoRA and weight differences act `factor` times as strongly as they were trained.

        Its embeddings act in full.

        Raises:
            InvalidInput: the adapter has embeddings alone.
        """
        adapter = self[name]
        if adapter.lora is None and not adapter.weights:
            raise InvalidInput(f"adapter {name!r} has no LoRA and no weight differences that could be scaled")
        if adapter.lora is not None:
            lora_module.scale_lora(self.transformer, name, factor)
        self._adapters[name] = replace(adapter, factor=factor)

    def load_lora(self, name: str, weights: dict[str, Tensor]) -> None:
        lora_module.load_parameters(self.transformer, name, weights)

    def load_embeddings(self, name: str, values_NRD: Tensor) -> None:
        """Overwrite an adapter's embeddings.

        Raises:
            ValueError: it has none, or the shape is another.
        """
        embeddings = self[name].embeddings
        if embeddings is None or values_NRD.shape != embeddings.Y_NRD.shape:
            raise ValueError(f"embeddings {tuple(values_NRD.shape)}, the base has {self.embedding_shape}")
        with torch.no_grad():
            embeddings.Y_NRD.copy_(values_NRD)

    def rename_concept(self, name: str, concept: str) -> None:
        """Say which concept an adapter knows."""
        self._adapters[name] = replace(self[name], concept=concept)

    def use_gradient_checkpointing(self, wanted: bool) -> None:
        """Recompute blocks in the backward pass, each under the adapter and embeddings of its own forward pass."""
        if not wanted:
            self.transformer.disable_gradient_checkpointing()
            return

        def recomputed(block: nn.Module, *arguments: Any) -> Any:
            replacement, adapter, held = self._hooks.current, self._switch.current, self._weights.held

            def run(*inner: Any) -> Any:
                # in the backward pass another adapter, or none, may act
                with self._switch.active(adapter), self._weights.holding(held), self._hooks.replacing(replacement):
                    return block(*inner)

            return checkpoint(run, *arguments, use_reentrant=False)

        self.transformer.enable_gradient_checkpointing(recomputed)

    @contextmanager
    def on_top_of(self, loras: Sequence[str], differences: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the model without an adapter has these LoRA and differences, and every adapter adds to them."""
        with self._weights.adding(differences), self._switch.under(loras):
            yield

    # the flow

    def changes_of(self, adapter: str | None) -> str | None:
        """The adapter whose LoRA or weight differences act: itself, or None if it has none."""
        return adapter if adapter is not None and (self[adapter].lora is not None or self[adapter].weights) else None

    def forward(self, x_BCHW: Tensor, t_B: Tensor, text: TextEncoding, adapters: Sequence[str | None]) -> Tensor:
        """Velocities (B, C, H, W) in at least float32, one adapter per sample.

        Raises:
            ValueError: the adapters of the batch do not share their LoRA or weight differences.
            InvalidInput: a prompt names a concept that no loaded adapter, or more than one, knows.
        """
        changes = {self.changes_of(adapter) for adapter in adapters}
        if len(changes) != 1:
            raise ValueError(f"one forward pass cannot act through several adapters' weights: {changes}")
        (acting,) = changes
        lora = acting if acting is not None and self[acting].lora is not None else None
        differences = self[acting].acting_weights if acting is not None else {}
        samples = [self._replaced(rows, adapter) for rows, adapter in zip(text.concept_rows, adapters, strict=True)]
        replacement = Replacement.plan(samples, self.device)
        with self._switch.active(lora), self._weights.adding(differences), self._hooks.replacing(replacement):
            v_BCHW: Tensor = self.transformer(
                hidden_states=x_BCHW.to(self.dtype),
                timestep=t_B * self._train_timesteps,
                encoder_hidden_states=text.context_BLD,
                pooled_projections=text.pooled_BP,
                return_dict=False,
            )[0]
        return v_BCHW.to(torch.promote_types(v_BCHW.dtype, torch.float32))

    def _replaced(
        self, concept_rows: dict[str, tuple[int, ...]], adapter: str | None
    ) -> list[tuple[ConceptEmbeddings, tuple[int, ...]]]:
        if adapter is None:  # the untouched base reads the placeholder word
            return []
        found = [(self._embeddings_of(name, self[adapter]), rows) for name, rows in concept_rows.items()]
        return [(embeddings, rows) for embeddings, rows in found if embeddings is not None]

    def _embeddings_of(self, concept: str, active: Adapter) -> ConceptEmbeddings | None:
        """The embeddings that a mention means: those of the active adapter, or of the one that knows the concept."""
        if concept == "" and active.concept == "":
            raise InvalidInput("[V] names no concept where several act", field="prompt", mend="write each as <name>")
        if concept in ("", active.concept):
            return active.embeddings
        holders = [adapter for adapter in self._adapters.values() if adapter.concept == concept]
        if len(holders) != 1:
            known = ", ".join(sorted({adapter.concept for adapter in self._adapters.values()} - {""}))
            raise InvalidInput(
                f"{len(holders)} loaded adapters know the concept <{concept}>, it has to be one",
                field="prompt",
                mend=f"loaded concepts: {known}",
            )
        return holders[0].embeddings

    @torch.no_grad()
    def context_rows(self, x_BCHW: Tensor, t_B: Tensor, text: TextEncoding) -> Tensor:
        """Mean over all mentions of the concept's context rows at the input of each block, in the base: (N, R, D)."""
        mean_NRD = torch.zeros(self.embedding_shape, device=self.device)
        count_R = torch.zeros(self._rows, device=self.device)
        where = [
            (sample, row, embedding_index(position, len(rows), self._rows))
            for sample, mentioned in enumerate(text.concept_rows)
            for rows in mentioned.values()
            for position, row in enumerate(rows)
        ]
        if not where:
            raise ValueError("no prompt mentions a concept")
        for _, _, index in where:
            count_R[index] += 1

        def record(block: int, context_BLD: Tensor) -> None:
            for sample, row, index in where:
                mean_NRD[block, index] += context_BLD[sample, row].float() / count_R[index]

        with self._hooks.recording(record):
            self.forward(x_BCHW, t_B, text, [None] * len(text))
        return mean_NRD
