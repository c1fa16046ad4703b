"""One training: what it is about, and the adapters that it works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.learning.cache import EncodedConcept
from components.learning.encodings import encodings_folder
from components.learning.randomness import derive_seed
from components.learning.training import ParameterGroup
from components.learning_settings import ExtractorSettings, LearningSettings, LoraSettings, PureSettings
from components.settings import Profile

Stage = Literal["extractor", "pure-learning"]
EXTRACTOR: Stage = "extractor"
"""Stage 1, and the name of theta1 in every stage."""
PURE: Stage = "pure-learning"
"""Stage 2, and the only stage of the other methods."""


@dataclass
class Task:
    """One training: what it is about, and the adapters that it works with.

    Attributes:
        stage: its name, which is also that of the adapter that it trains.
        encoded: the references to train on.
        extractor: the adapter folder of stage 1, for methods that have one.
        earlier: adapter folders of concepts learned before.
    """

    backbone: SD3Backbone
    concept: Concept
    profile: Profile
    stage: Stage
    encoded: EncodedConcept
    extractor: Path | None = None
    earlier: tuple[Path, ...] = ()
    _added: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        backbone: SD3Backbone,
        concept: Concept,
        profile: Profile,
        stage: Stage,
        *,
        more_texts: Sequence[str] = (),
        extractor: Path | None = None,
        earlier: tuple[Path, ...] = (),
    ) -> Task:
        """Encode what the stage trains on.

        Raises:
            InvalidInput: there are fewer references than the settings ask for.
        """
        learning = profile.learning
        count = len(concept.references) if learning.references is None else learning.references
        if count > len(concept.references):
            raise InvalidInput(
                f"{len(concept.references)} references where {count} are asked for",
                file=concept.folder,
                field="learning.references",
                mend="ask for fewer, or add images",
            )
        chosen = replace(concept, references=concept.references[:count])
        encoded = EncodedConcept.encode(backbone, chosen, more=more_texts, folder=encodings_folder())
        return Task(backbone, concept, profile, stage, encoded, extractor, earlier)

    @property
    def learning(self) -> LearningSettings:
        return self.profile.learning

    @property
    def settings(self) -> ExtractorSettings | PureSettings:
        return self.learning.extractor if self.stage == EXTRACTOR else self.learning.pure

    def initial_embeddings(self) -> Tensor:
        """What the base makes of the placeholder word, for as many blocks as the settings ask for."""
        measured_NRD = initial_embeddings(self.backbone, self.encoded, self.profile.seed)
        return measured_NRD[:1] if self.learning.embeddings == "single" else measured_NRD

    def add_adapter(
        self, name: str | None = None, *, lora: LoraSettings | None = None, embeddings_NRD: Tensor | None = None
    ) -> None:
        """Add the stage's adapter, or one under another name."""
        name = name or self.stage
        seed = derive_seed(self.profile.seed, name, "lora")
        self.backbone.create_adapter(
            name, concept=self.concept.name, lora=lora, embeddings_NRD=embeddings_NRD, seed=seed
        )
        self._added.append(name)

    def add_weights(self, weights: Mapping[str, Tensor], *, embeddings_NRD: Tensor | None = None) -> None:
        """Add the stage's adapter as differences, zero yet, to these weights of the base."""
        zero = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}
        self.backbone.create_adapter(self.stage, concept=self.concept.name, embeddings_NRD=embeddings_NRD, weights=zero)
        self._added.append(self.stage)

    def load_extractor(self) -> Tensor:
        """Load theta1 as the adapter `extractor`; the embeddings that theta2 starts from.

        Raises:
            InvalidInput: it is for another base or concept.
            IntegrityError: the folder does not match its manifest.
        """
        assert self.extractor is not None, "train_pure sees to it"
        self.backbone.load_adapter(self.extractor, EXTRACTOR)
        self._added.append(EXTRACTOR)
        if self.backbone.adapted[EXTRACTOR].concept != self.concept.name:
            raise InvalidInput(f"the extractor knows another concept than {self.concept.name!r}", file=self.extractor)
        theta1 = self.backbone.parameters(EXTRACTOR)
        return theta1["embeddings"]["Y_NRD"].detach() if "embeddings" in theta1 else self.initial_embeddings()

    def groups(self, *kinds: str) -> list[ParameterGroup]:
        """The parameters of these kinds of the stage's adapter, at the stage's rates."""
        settings, parameters = self.settings, self.backbone.parameters(self.stage)
        rates = {"lora": settings.lora_learning_rate, "embeddings": settings.embedding_learning_rate}
        first = {}
        if isinstance(settings, PureSettings):
            rates["weights"] = settings.weight_learning_rate
            first["lora"] = settings.lora_from_step
        return [ParameterGroup(kind, parameters[kind], rates[kind], first.get(kind, 0)) for kind in kinds]

    def remove_adapters(self) -> None:
        for name in self._added:
            self.backbone.remove_adapter(name)
        self._added.clear()


def initial_embeddings(backbone: SD3Backbone, encoded: EncodedConcept, seed: int) -> Tensor:
    """What the untouched base makes of the placeholder word in the concept's own texts, layer by layer: (N, R, D)."""
    batch = encoded.batch(range(len(encoded.digests)))
    return backbone.measure_context_rows(batch.complete, batch.x_0_BCHW, seed=derive_seed(seed, "embeddings") % 2**31)
