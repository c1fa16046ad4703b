"""How much each part of the family is trained: the shipped recipe, and one that a test runs in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from components.world.family import FAMILY_SIZES, FamilySize
from components.world.pretraining.flow import MUON_PARAMETERS, FlowSettings
from components.world.pretraining.loop import LoopSettings


@dataclass(frozen=True)
class Recipe:
    """All that decides the family, but for the seed."""

    size: FamilySize
    autoencoder: LoopSettings
    flow: LoopSettings
    flow_settings: FlowSettings
    oracle: LoopSettings
    dino: LoopSettings
    clip: LoopSettings
    segmenter: LoopSettings
    csd: LoopSettings
    hps: LoopSettings
    pickscore: LoopSettings
    quality_prompts: int = 504

    def loop(self, part: str) -> LoopSettings:
        """The loop of one part."""
        settings = getattr(self, part)
        assert isinstance(settings, LoopSettings)
        return settings


def _short(batch_size: int = 4) -> LoopSettings:
    return LoopSettings(steps=3, batch_size=batch_size, learning_rate=1e-3, warmup_steps=1, checkpoint_every=2)


RECIPES = {
    # batch sizes are of one process; the shipped family was made with two
    "tiny": Recipe(
        size=FAMILY_SIZES["tiny"],
        autoencoder=LoopSettings(
            steps=3000, batch_size=12, learning_rate=2e-3, warmup_steps=60, average_decay=0.998, checkpoint_every=250
        ),
        flow=LoopSettings(
            steps=4000,
            batch_size=24,
            learning_rate=1.5e-3,
            warmup_steps=100,
            muon=MUON_PARAMETERS,
            average_decay=0.998,
            checkpoint_every=100,
        ),
        flow_settings=FlowSettings(),
        oracle=LoopSettings(steps=2400, batch_size=64, learning_rate=2e-3, average_decay=0.998),
        dino=LoopSettings(steps=1400, batch_size=64, learning_rate=1.5e-3),
        clip=LoopSettings(steps=600, batch_size=128, learning_rate=1e-3),
        segmenter=LoopSettings(steps=1400, batch_size=32, learning_rate=2e-3),
        csd=LoopSettings(steps=600, batch_size=64, learning_rate=1e-3),
        hps=LoopSettings(steps=1200, batch_size=48, learning_rate=1e-3),
        pickscore=LoopSettings(steps=1200, batch_size=48, learning_rate=1e-3),
    ),
    "micro": Recipe(
        size=FAMILY_SIZES["micro"],
        autoencoder=_short(),
        flow=_short(),
        flow_settings=FlowSettings(pool=16, long_text=0.5),
        oracle=_short(),
        dino=_short(),
        clip=_short(),
        segmenter=_short(),
        csd=_short(),
        hps=_short(),
        pickscore=_short(),
        quality_prompts=8,
    ),
}
