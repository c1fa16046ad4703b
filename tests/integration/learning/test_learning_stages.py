"""The two stages on an untrained base: what trains, what guides, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import IntegrityError, InvalidInput, TrainingDiverged
from components.files import verify_manifest
from components.learning import NullTracker, train_extractor, train_pure
from components.learning import extractor as extractor_module
from components.learning import losses as losses_module
from components.learning.cache import EncodedConcept
from components.learning.flow_matching import FlowSample, interpolate
from components.learning.history import read_history
from components.learning.losses import flow_matching_loss
from components.learning.methods.purecc import pure_learning_loss
from components.learning.task import initial_embeddings
from components.settings import LoraSettings, Profile

MakeProfile = Callable[..., Profile]
PURE_KEYS = {
    "step", "loss/cc", "loss/purecc", "loss/total", "lambda_star/mean", "lambda_star/std", "lambda_star/min",
    "lambda_star/max", "guidance/norm", "guidance/cosine", "grad_norm", "lr", "speed/steps_per_second",
    "memory/peak_mib",
}  # fmt: skip
PLAIN_KEYS = {"step", "loss/cc", "loss/total", "grad_norm", "lr", "speed/steps_per_second", "memory/peak_mib"}
TIMING = {"speed/steps_per_second", "memory/peak_mib"}


def base_state(backbone: SD3Backbone) -> dict[str, Tensor]:
    """The base's own weights under their own names, whether or not LoRA layers stand around them."""
    return {
        name.replace(".base_layer", ""): value.detach().clone()
        for name, value in backbone.transformer.state_dict().items()
        if ".lora_" not in name
    }


def trace(work: Path) -> list[dict[str, float]]:
    return [{key: row[key] for key in row.keys() - TIMING} for row in read_history(work / "history.jsonl")]


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("trains", ["embeddings", "lora", "lora+embeddings"])
def test_extractor_trains_exactly_what_the_profile_says(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path, trains: str
) -> None:
    before = base_state(backbone)
    folder = train_extractor(backbone, concept, profile(f"learning.extractor.trains={trains}"), tmp_path, NullTracker())
    verify_manifest(folder)
    files = {path.name for path in folder.iterdir()}
    assert ("adapter_model.safetensors" in files) == ("lora" in trains)
    tensors = load_file(folder / "concept_embeddings.safetensors")
    assert bool(tensors) == ("embeddings" in trains)
    if "embeddings" in trains:
        encoded = EncodedConcept.encode(backbone, concept)
        start = initial_embeddings(backbone, encoded, 0)
        moved = (tensors["concept_embeddings"] - start).abs().amax(-1)
        assert (moved > 0).all(), "each row of each block has learned"
    if "lora" in trains:
        lora = load_file(folder / "adapter_model.safetensors")
        still = {name for name, value in lora.items() if "lora_B" in name and not value.any()}
        last = len(backbone.transformer.transformer_blocks) - 1
        # the last block drops its context stream: queries from the context lead nowhere there
        assert still == {f"base_model.model.transformer_blocks.{last}.attn.add_q_proj.lora_B.weight"}
    after = base_state(backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert backbone.adapted.names == ()
    assert not any(value.requires_grad for value in backbone.transformer.parameters())
    assert set(read_history(tmp_path / "history.jsonl")[0]) == PLAIN_KEYS
    assert (folder / "concept.yaml").read_text() == (concept.folder / "concept.yaml").read_text()


@pytest.fixture
def theta1(backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path) -> Path:
    return train_extractor(backbone, concept, profile(), tmp_path / "theta1", NullTracker())


def test_the_extractors_guidance_is_not_the_bases(backbone: SD3Backbone, concept: Concept, theta1: Path) -> None:
    """The released code's extractor acts with its adapter off: its R_tar is the base's own guidance, bit for bit."""
    encoded = EncodedConcept.encode(backbone, concept)
    batch = encoded.batch([0, 1])
    flow = interpolate(batch.x_0_BCHW, torch.randn_like(batch.x_0_BCHW), torch.tensor([0.3, 0.7]))
    backbone.load_adapter(theta1, "theta1")
    try:
        with torch.no_grad():
            ours = [backbone.velocity(flow.x_t_BCHW, flow.t_B, text, "theta1") for text in (batch.target, batch.null)]
            base = [backbone.velocity(flow.x_t_BCHW, flow.t_B, text, None) for text in (batch.target, batch.null)]
    finally:
        backbone.remove_adapter("theta1")
    difference = ((ours[0] - ours[1]) - (base[0] - base[1])).norm()
    assert difference > 1e-2 * (base[0] - base[1]).norm()
    assert torch.equal(ours[1], base[1]), "embeddings alone leave the null text alone"


def test_pure_learning_starts_from_the_extractor_and_changes_only_theta2(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    before, files = base_state(backbone), weights(theta1)
    slow = ["learning.pure.embedding_learning_rate=1e-9", "learning.pure.steps=2"]
    folder = train_pure(backbone, concept, profile(*slow), theta1, tmp_path / "slow", NullTracker())
    one = load_file(theta1 / "concept_embeddings.safetensors")["concept_embeddings"]
    two = load_file(folder / "concept_embeddings.safetensors")["concept_embeddings"]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-7)
    assert not torch.equal(one, two), "and they train"
    lora = load_file(folder / "adapter_model.safetensors")
    assert sum(bool(value.any()) for name, value in lora.items() if "lora_B" in name) == len(lora) // 2 - 1
    after = base_state(backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert weights(theta1) == files
    assert backbone.adapted.names == ()
    history = read_history(tmp_path / "slow" / "history.jsonl")
    assert [row["step"] for row in history] == [1, 2]
    assert all(set(row) == PURE_KEYS for row in history)


def adapters(backbone: SD3Backbone, encoded: EncodedConcept) -> list[torch.nn.Parameter]:
    """theta1 and theta2 with LoRA and embeddings away from their initial values; theta2's parameters train."""
    random = torch.Generator().manual_seed(2)
    start = initial_embeddings(backbone, encoded, 0)
    for name in ("theta1", "theta2"):
        values = start + 0.3 * torch.randn(start.shape, generator=random)
        backbone.create_adapter(name, concept="striped_star", lora=LoraSettings(), embeddings_NRD=values, seed=3)
        for value in backbone.parameters(name)["lora"].values():
            torch.nn.init.normal_(value, std=0.05, generator=random)
    trained = [value for kind in backbone.parameters("theta2").values() for value in kind.values()]
    for value in trained:
        value.requires_grad_(True)
    return trained


def flow_and_batch(encoded: EncodedConcept) -> tuple[FlowSample, Any]:
    batch = encoded.batch([0, 1, 2])
    noise = torch.randn(batch.x_0_BCHW.shape, generator=torch.Generator().manual_seed(1))
    return interpolate(batch.x_0_BCHW, noise, torch.tensor([0.2, 0.5, 0.8])), batch


@pytest.mark.parametrize("guidance", ["null", "class"])
@pytest.mark.parametrize("original", ["trainable", "detached", "frozen"])
def test_loss_is_that_of_the_equations(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, original: str, guidance: str
) -> None:
    """Equations 8 to 15 written out with one velocity at a time."""
    encoded = EncodedConcept.encode(backbone, concept)
    settings = profile(f"learning.original={original}", f'learning.guidance="{guidance}"', "learning.eta=1.5").learning
    trained = adapters(backbone, encoded)
    flow, batch = flow_and_batch(encoded)
    try:
        got = pure_learning_loss(backbone, "theta2", "theta1", settings)(flow, batch)
        got.total.backward()
        gradients = [value.grad.clone() for value in trained if value.grad is not None]
        for value in trained:
            value.grad = None

        def v(text: TextEncoding, adapter: str | None) -> Tensor:
            return backbone.velocity(flow.x_t_BCHW, flow.t_B, text, adapter)

        complete = v(batch.complete, "theta2")
        with torch.no_grad():
            r_tar = v(batch.target, "theta1") - v(batch.null if guidance == "null" else batch.class_text, "theta1")
        v_orig = v(batch.base, None if original == "frozen" else "theta2")
        if original != "trainable":
            v_orig = v_orig.detach()
        r_cb = complete - v_orig
        scale = (r_cb * r_tar).sum((1, 2, 3)) / (r_tar * r_tar).sum((1, 2, 3))
        pure = ((v_orig + scale[:, None, None, None] * r_tar - complete) ** 2).mean()
        plain = ((flow.target_BCHW - complete) ** 2).mean()
        (plain + 1.5 * pure).backward()
        torch.testing.assert_close(got.total, plain + 1.5 * pure, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got.metrics["loss/purecc"], pure.detach(), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(got.metrics["lambda_star/mean"], scale.mean().detach(), rtol=1e-3, atol=1e-6)
        expected = [value.grad for value in trained if value.grad is not None]
        assert len(gradients) == len(expected) == len(trained)
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        assert not any(p.grad is not None for kind in backbone.parameters("theta1").values() for p in kind.values())
    finally:
        for name in ("theta1", "theta2"):
            backbone.remove_adapter(name)


def test_the_three_originals_differ_where_they_should(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile
) -> None:
    """trainable and detached: one loss, other gradients; frozen: another loss, since theta2 has left the base."""
    encoded = EncodedConcept.encode(backbone, concept)
    trained = adapters(backbone, encoded)
    flow, batch = flow_and_batch(encoded)
    losses, gradients = {}, {}
    try:
        for original in ("trainable", "detached", "frozen"):
            settings = profile(f"learning.original={original}", "learning.eta=2").learning
            loss = pure_learning_loss(backbone, "theta2", "theta1", settings)(flow, batch)
            loss.total.backward()
            losses[original] = float(loss.metrics["loss/purecc"])
            gradients[original] = torch.cat([value.grad.flatten() for value in trained if value.grad is not None])
            for value in trained:
                value.grad = None
    finally:
        for name in ("theta1", "theta2"):
            backbone.remove_adapter(name)
    assert losses["trainable"] == pytest.approx(losses["detached"], rel=1e-3)
    assert (gradients["trainable"] - gradients["detached"]).norm() > 1e-3 * gradients["detached"].norm()
    assert abs(losses["frozen"] - losses["detached"]) > 1e-2 * losses["detached"]


@pytest.mark.parametrize(
    ("original", "theta1_lora", "passes"),
    [
        ("frozen", False, [6, 2]),  # target, contrast and base share a pass without LoRA, then the gradient's
        ("frozen", True, [4, 2, 2]),
        ("detached", False, [4, 2, 2]),
        ("trainable", False, [4, 4]),
        ("trainable", True, [4, 4]),
    ],
)
def test_passes_of_a_step(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, original: str, theta1_lora: bool, passes: list[int]
) -> None:
    encoded = EncodedConcept.encode(backbone, concept)
    start = initial_embeddings(backbone, encoded, 0)
    backbone.create_adapter("theta1", concept="c", lora=LoraSettings() if theta1_lora else None, embeddings_NRD=start)
    backbone.create_adapter("theta2", concept="c", lora=LoraSettings(), embeddings_NRD=start)
    sizes: list[int] = []
    handle = backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    batch = encoded.batch([0, 1])
    flow = interpolate(batch.x_0_BCHW, torch.randn_like(batch.x_0_BCHW), torch.tensor([0.4, 0.6]))
    try:
        settings = profile(f"learning.original={original}").learning
        pure_learning_loss(backbone, "theta2", "theta1", settings)(flow, batch)
        assert sizes == passes
        sizes.clear()
        flow_matching_loss(backbone, "theta2")(flow, batch)
        assert sizes == [2]
    finally:
        handle.remove()
        for name in ("theta1", "theta2"):
            backbone.remove_adapter(name)


def test_plain_lora_needs_no_extractor(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    folder = train_pure(backbone, concept, profile("learning.method=lora"), None, tmp_path / "lora", NullTracker())
    assert set(read_history(tmp_path / "lora" / "history.jsonl")[0]) == PLAIN_KEYS
    backbone.load_adapter(folder, "lora")
    assert set(backbone.parameters("lora")) == {"lora"}
    backbone.remove_adapter("lora")
    with pytest.raises(InvalidInput, match="lora with stages: separate has no extractor"):
        train_pure(backbone, concept, profile("learning.method=lora"), theta1, tmp_path / "x", NullTracker())
    with pytest.raises(InvalidInput, match="needs the extractor"):
        train_pure(backbone, concept, profile(), None, tmp_path / "x", NullTracker())


def test_a_damaged_extractor_is_refused(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    (theta1 / "concept.yaml").write_text("name: other\n")
    with pytest.raises(IntegrityError, match=r"changed concept\.yaml"):
        train_pure(backbone, concept, profile(), theta1, tmp_path / "x", NullTracker())
    assert backbone.adapted.names == ()


def test_same_seed_same_bytes_and_snapshots_are_shorter_trainings(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    """A snapshot at step 4 is the adapter of a training of 4 steps; looking in between changes nothing."""
    shown = ["learning.snapshot_steps=[4]", "learning.preview_every=3", "learning.checkpoint_every=2"]
    long = train_pure(backbone, concept, profile(*shown), theta1, tmp_path / "long", NullTracker())
    again = train_pure(backbone, concept, profile(), theta1, tmp_path / "again", NullTracker())
    short = train_pure(backbone, concept, profile("learning.pure.steps=4"), theta1, tmp_path / "short", NullTracker())
    other = train_pure(backbone, concept, profile("seed=1"), theta1, tmp_path / "other", NullTracker())
    assert weights(long) == weights(again)
    assert trace(tmp_path / "long") == trace(tmp_path / "again")
    assert weights(tmp_path / "long" / "snapshots" / "4") == weights(short)
    assert weights(long) != weights(other)
    assert sorted(path.name for path in (tmp_path / "long" / "previews").iterdir()) == ["000003.png", "000006.png"]
    with Image.open(tmp_path / "long" / "previews" / "000006.png") as picture:
        assert picture.size == (3 * 64, 64)


def test_gradient_checkpointing_changes_nothing(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    plain = train_pure(backbone, concept, profile(), theta1, tmp_path / "a", NullTracker())
    sparing = train_pure(
        backbone, concept, profile("learning.gradient_checkpointing=true"), theta1, tmp_path / "b", NullTracker()
    )
    assert weights(plain) == weights(sparing)


def test_accumulated_batches_see_as_many_references_and_average_their_gradients(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a loss that ignores its draws, two accumulated batches give the step of one."""
    one, two = profile(), profile("learning.gradient_accumulation=2")
    batches: list[int] = []
    encoded = EncodedConcept.encode(backbone, concept)
    flow, batch = flow_and_batch(encoded)

    def fixed(backbone: SD3Backbone, adapter: str) -> Any:
        inner = flow_matching_loss(backbone, adapter)

        def loss(drawn: FlowSample, drawn_batch: Any) -> Any:
            batches.append(len(drawn.t_B))
            return inner(flow, batch)

        return loss

    monkeypatch.setattr(extractor_module, "flow_matching_loss", fixed)
    single = train_extractor(backbone, concept, one, tmp_path / "1", NullTracker())
    assert batches == [2] * 6
    batches.clear()
    double = train_extractor(backbone, concept, two, tmp_path / "2", NullTracker())
    assert batches == [2] * 12
    name = "concept_embeddings.safetensors"
    torch.testing.assert_close(
        load_file(single / name)["concept_embeddings"], load_file(double / name)["concept_embeddings"]
    )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1, 100))
    original = losses_module.squared_error
    monkeypatch.setattr(
        losses_module, "squared_error", lambda a, b: original(a, b) * (float("nan") if next(calls) == 5 else 1.0)
    )
    settings = profile("learning.checkpoint_every=3")
    with pytest.raises(TrainingDiverged, match=r"extractor: .* is not finite at step 5; .* step 3") as error:
        train_extractor(backbone, concept, settings, tmp_path / "bad", NullTracker())
    assert str(tmp_path / "bad" / "checkpoints") in str(error.value)
    assert not (tmp_path / "bad" / "adapter").exists()
    assert [row["step"] for row in read_history(tmp_path / "bad" / "history.jsonl")] == [1, 2, 3, 4]
    assert backbone.adapted.names == ()
    # the checkpoint is good: what comes after it is what an unbroken training gives
    monkeypatch.setattr(losses_module, "squared_error", original)
    resumed = train_extractor(backbone, concept, settings, tmp_path / "bad", NullTracker())
    unbroken = train_extractor(backbone, concept, settings, tmp_path / "good", NullTracker())
    assert weights(resumed) == weights(unbroken)


class Interrupting(NullTracker):
    def __init__(self, step: int) -> None:
        self.step, self.flushed = step, False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt

    def flush(self) -> None:
        self.flushed = True


def test_an_interrupt_leaves_a_state_to_go_on_from(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    settings, tracker = profile("learning.checkpoint_every=2", "learning.ema_decay=0.9"), Interrupting(4)
    with pytest.raises(KeyboardInterrupt):
        train_pure(backbone, concept, settings, theta1, tmp_path / "broken", tracker)
    assert tracker.flushed
    assert backbone.adapted.names == ()
    resumed = train_pure(backbone, concept, settings, theta1, tmp_path / "broken", NullTracker())
    unbroken = train_pure(backbone, concept, settings, theta1, tmp_path / "whole", NullTracker())
    assert weights(resumed) == weights(unbroken)
    assert trace(tmp_path / "broken") == trace(tmp_path / "whole")


def test_going_on_with_other_settings_is_refused(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    train_pure(backbone, concept, profile(), theta1, tmp_path / "w", NullTracker())
    with pytest.raises(InvalidInput, match="other data, settings or base"):
        train_pure(backbone, concept, profile("learning.eta=2"), theta1, tmp_path / "w", NullTracker())
    # what is only shown may change
    train_pure(backbone, concept, profile("learning.preview_every=5"), theta1, tmp_path / "w", NullTracker())


def test_provenance_is_written_under_the_manifest(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    few = profile("learning.extractor.steps=1")
    folder = train_extractor(backbone, concept, few, tmp_path, NullTracker(), provenance={"data": "abc"})
    assert json.loads((folder / "provenance.json").read_text()) == {"data": "abc"}
    verify_manifest(folder)


def test_latents_belong_to_their_image_and_texts(backbone: SD3Backbone, concept: Concept) -> None:
    """Whatever the order in which references are drawn, an image meets its own latent and its own texts."""
    from components.concepts.images import load_image

    encoded = EncodedConcept.encode(backbone, concept)
    assert backbone._vae is None, "freed before training"
    assert backbone._text is None
    order = [2, 0, 0, 1]
    batch = encoded.batch(order)
    for row, index in enumerate(order):
        reference = concept.references[index]
        pixels = load_image(reference.path, 64)[None]
        torch.testing.assert_close(batch.x_0_BCHW[row], backbone.encode_image(pixels)[0], rtol=1e-4, atol=1e-5)
        for name, text in (
            ("complete", reference.texts.complete),
            ("base", reference.texts.base),
            ("target", reference.texts.target),
            ("class_text", reference.texts.class_text),
            ("null", ""),
        ):
            alone, there = backbone.encode_text([text]), getattr(batch, name).select([row])
            torch.testing.assert_close(there.context_BLD, alone.context_BLD, rtol=1e-4, atol=1e-5)
            assert there.concept_rows == alone.concept_rows
