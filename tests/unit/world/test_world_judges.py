"""The objectives of the preference models and the style encoder: their data, their losses, and that they learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from components.evaluation.pictures import to_pictures
from components.evaluation.preference import ClipPreference
from components.evaluation.style_encoder import StyleEncoder
from components.world.captions import full_caption
from components.world.pretraining.judges.corruptions import CORRUPTIONS, corrupted
from components.world.pretraining.judges.preference import _MIX, PreferenceObjective, contradict
from components.world.pretraining.judges.style import StyleObjective, contrastive_loss
from components.world.pretraining.loop import LoopSettings, Objective, train
from components.world.pretraining.stages import JUDGES, PARTS
from components.world.render import render
from components.world.scene import random_scene

CPU = torch.device("cpu")


def test_a_contradicting_scene_differs_in_one_thing_that_the_caption_says() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        scene = random_scene(rng, _MIX)
        other = contradict(scene, rng)
        assert full_caption(other) != full_caption(scene)
        changed = {field.name for field in dataclasses.fields(scene)} - {
            field.name
            for field in dataclasses.fields(scene)
            if getattr(scene, field.name) == getattr(other, field.name)
        }
        if changed == {"objects"}:
            first, second = scene.objects[0], other.objects[0]
            changed = {
                field.name
                for field in dataclasses.fields(first)
                if getattr(first, field.name) != getattr(second, field.name)
            }
            assert scene.objects[1:] == other.objects[1:]
        assert changed in ({"background"}, {"shape"}, {"position"}, {"look", "look_word"}), changed
        kinds |= changed
    assert kinds == {"background", "shape", "position", "look", "look_word"}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_is_seen_and_stays_in_range(kind) -> None:
    rng = np.random.default_rng(1)
    images = render([random_scene(rng) for _ in range(8)]).images_BCHW
    for image in images:
        damaged = kind(image, rng).clamp(-1, 1)
        assert damaged.shape == image.shape
        assert (damaged - image).abs().mean() > 0.004, "some scenes are nearly flat"
    again = [corrupted(images, np.random.default_rng(2)) for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].abs().max() <= 1


def test_the_contrastive_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    labels = torch.tensor([0, 1, 0, 2, 1, 2])
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = {j: np.exp(float(features[i] @ features[j]) / 0.1) for j in others}
        positives = [j for j in others if labels[j] == labels[i]]
        total += -np.mean([np.log(scores[j] / sum(scores.values())) for j in positives])
    assert float(contrastive_loss(features, labels, 0.1)) == pytest.approx(total / 6, rel=1e-5)


def test_each_content_wears_two_styles_and_each_style_two_contents() -> None:
    batch = StyleObjective().batch(np.random.default_rng(3), 12, 0)
    assert batch["images"].shape == (12, 3, 64, 64)
    assert batch["labels"].tolist() == batch["labels"][:6].tolist() * 2
    counts = torch.bincount(batch["labels"])
    assert (counts[counts > 0] >= 2).all(), "every picture has a positive"


def losses(objective: Objective, folder: Path, steps: int, batch_size: int) -> list[float]:
    """The loss on a fixed batch before and after training on others."""
    held_out = objective.batch(np.random.default_rng(99), 24, 0)

    def loss() -> float:
        with torch.no_grad():
            return float(objective(held_out)["loss"])

    before = loss()
    settings = LoopSettings(
        steps=steps, batch_size=batch_size, learning_rate=1e-3, warmup_steps=2, average_decay=None, mixed_precision="no"
    )
    train(objective, settings, folder=folder, seed=0)
    return [before, loss()]


def test_the_style_encoder_learns_and_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = StyleObjective()
    before, after = losses(objective, tmp_path / "work", steps=25, batch_size=16)
    assert after < before - 0.1
    objective.save(tmp_path / "csd")
    assert sum(file.stat().st_size for file in (tmp_path / "csd").iterdir()) < 2.5 * 2**20
    pictures = to_pictures(objective.batch(np.random.default_rng(4), 4, 0)["images"])
    encoded = StyleEncoder(str(tmp_path / "csd"), CPU).encode_images(pictures)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = torch.nn.functional.normalize(objective.model(pixel_values=pixels).image_embeds, dim=-1)
    np.testing.assert_allclose(encoded, expected.numpy(), atol=5e-3)


@pytest.mark.parametrize("damaged", [1.0, 0.0])
def test_a_preference_model_learns_and_loads(tmp_path: Path, damaged: float) -> None:
    torch.manual_seed(0)
    objective = PreferenceObjective(damaged)
    batch = objective.batch(np.random.default_rng(5), 4, 0)
    assert batch["damaged"].tolist() == [damaged == 1.0] * 4
    before, after = losses(objective, tmp_path / "work", steps=30, batch_size=12)
    assert after < before - 0.03
    objective.save(tmp_path / "hps")
    assert sum(file.stat().st_size for file in (tmp_path / "hps").iterdir()) < 2.5 * 2**20
    pictures, texts = to_pictures(batch["images"][:4]), ["a red star, snow background"] * 4
    scores = ClipPreference(str(tmp_path / "hps"), CPU, scale=100.0).score(pictures, texts)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() <= 100


def test_parts_are_named_as_profiles_name_them() -> None:
    from components.settings import EvaluatorSettings

    assert set(JUDGES) == set(EvaluatorSettings.model_fields)
    assert PARTS[:2] == ("autoencoder", "flow")


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_a_judge_trains_all_that_it_says(name: str) -> None:
    """What has no gradient stops a training of several processes at its second step."""
    torch.manual_seed(0)
    judge = JUDGES[name]().train()
    judge(judge.batch(np.random.default_rng(0), 4, 0))["loss"].backward()
    assert [part for part, value in judge.named_parameters() if value.requires_grad and value.grad is None] == []
