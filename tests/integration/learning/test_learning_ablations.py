"""Settings that change the course of a training: merged stages, embeddings first, fewer references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.learning import NullTracker, train_extractor, train_pure
from components.learning.flow_matching import interpolate
from components.learning.methods import purecc
from components.learning.task import EXTRACTOR, PURE, Task
from components.settings import Profile

MakeProfile = Callable[..., Profile]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# merged stages


@pytest.mark.parametrize("trains", ["lora+embeddings", "embeddings"])
def test_a_merged_extractor_learns_along_by_its_own_loss(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, trains: str
) -> None:
    settings = profile("learning.stages=merged", f"learning.extractor.trains={trains}", "learning.eta=1")
    task = Task.of(backbone, concept, settings, PURE)
    try:
        recipe = purecc.prepare(task)
        names = ["lora", "embeddings", *(f"extractor.{kind}" for kind in trains.split("+"))]
        assert [group.name for group in recipe.groups] == names
        rates = {group.name: group.learning_rate for group in recipe.groups}
        assert rates["extractor.embeddings"] == settings.learning.extractor.embedding_learning_rate
        random = torch.Generator().manual_seed(0)
        for group in recipe.groups:
            for value in group.parameters.values():
                value.data += 0.05 * torch.randn(value.shape, generator=random)
                value.requires_grad_(True)
        batch = task.encoded.batch([0, 1])
        noise = torch.randn(batch.x_0_BCHW.shape, generator=random)
        flow = interpolate(batch.x_0_BCHW, noise, torch.tensor([0.3, 0.7]))
        step = recipe.loss(flow, batch)
        step.total.backward()
        theirs = [value for group in recipe.groups[2:] for value in group.parameters.values()]
        ours = [value for group in recipe.groups[:2] for value in group.parameters.values()]
        together = [None if value.grad is None else value.grad.clone() for value in (*theirs, *ours)]
        for value in (*theirs, *ours):
            value.grad = None

        own = (backbone.velocity(flow.x_t_BCHW, flow.t_B, batch.complete, EXTRACTOR) - flow.target_BCHW).square().mean()
        pure = purecc.pure_learning_loss(backbone, PURE, EXTRACTOR, settings.learning)(flow, batch)
        own.backward()
        pure.total.backward()
        torch.testing.assert_close(step.total, own + pure.total)
        assert float(step.metrics["loss/extractor"]) == pytest.approx(float(own.detach()))
        for value, grad in zip((*theirs, *ours), together, strict=True):
            torch.testing.assert_close(value.grad, grad, rtol=1e-4, atol=1e-7)
    finally:
        task.remove_adapters()


def test_merged_stages_need_no_extractor_and_leave_none(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    settings = profile("learning.stages=merged", "learning.checkpoint_every=2")
    assert not settings.learning.has_extractor
    folder = train_pure(backbone, concept, settings, None, tmp_path / "m", NullTracker())
    assert backbone.adapted.names == ()
    separate = profile()
    extractor = train_extractor(backbone, concept, separate, tmp_path / "e", NullTracker())
    with pytest.raises(InvalidInput, match="merged has no extractor"):
        train_pure(backbone, concept, settings, extractor, tmp_path / "x", NullTracker())
    two = train_pure(backbone, concept, separate, extractor, tmp_path / "p", NullTracker())
    assert contents(folder).keys() == contents(two).keys()
    assert contents(folder) != contents(two)
    checkpoint = load_file(tmp_path / "m" / "checkpoints" / "00000006" / "tensors.safetensors")
    assert "parameter.extractor.embeddings.Y_NRD" in checkpoint, "a resumed training has theta1 again"


# embeddings first, references, one embedding


def test_embeddings_first_then_lora(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    settings = profile(
        "learning.method=mix-of-show",
        "learning.pure.lora_from_step=2",
        "learning.pure.steps=4",
        "learning.snapshot_steps=[2,3]",
        "learning.checkpoint_every=1",
    )
    folder = train_pure(backbone, concept, settings, None, tmp_path / "whole", NullTracker())

    def moved(adapter: Path) -> int:
        stored = load_file(adapter / "adapter_model.safetensors")
        return sum(bool(value.any()) for name, value in stored.items() if "lora_B" in name)

    snapshots = tmp_path / "whole" / "snapshots"
    assert moved(snapshots / "2") == 0
    assert moved(snapshots / "3") > 0
    one, two = (
        load_file(snapshots / step / "concept_embeddings.safetensors")["concept_embeddings"] for step in ("2", "3")
    )
    assert not torch.equal(one, two), "the embeddings go on"

    class Interrupting(NullTracker):
        def log_metrics(self, metrics: object, step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # its checkpoint has no moments of LoRA
        train_pure(backbone, concept, settings, None, tmp_path / "broken", Interrupting())
    resumed = train_pure(backbone, concept, settings, None, tmp_path / "broken", NullTracker())
    assert contents(resumed) == contents(folder)


def test_a_limit_of_references_is_a_smaller_concept(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    limited = train_extractor(backbone, concept, profile("learning.references=2"), tmp_path / "two", NullTracker())
    smaller = replace(concept, references=concept.references[:2])
    assert contents(limited) == contents(train_extractor(backbone, smaller, profile(), tmp_path / "s", NullTracker()))
    with pytest.raises(InvalidInput, match="3 references where 4 are asked for"):
        train_extractor(backbone, concept, profile("learning.references=4"), tmp_path / "x", NullTracker())


def test_a_single_embedding_is_the_first_blocks(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    settings = profile("learning.embeddings=single")
    extractor = train_extractor(backbone, concept, settings, tmp_path / "e", NullTracker())
    folder = train_pure(backbone, concept, settings, extractor, tmp_path / "p", NullTracker())
    shape = backbone.adapted.embedding_shape
    for adapter in (extractor, folder):
        (rows,) = load_file(adapter / "concept_embeddings.safetensors").values()
        assert rows.shape == (1, *shape[1:])
    backbone.load_adapter(folder, "loaded")
    backbone.remove_adapter("loaded")
