"""Settings that save time or memory train the adapter that the plain path trains, within a stated tolerance."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.backbones.economies import compiled
from components.backbones.interface import TextEncoding
from components.backbones.quantization import frozen_linears, int8_weights
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.learning import NullTracker, train_extractor, train_pure
from components.learning.cache import EncodedConcept
from components.learning.flow_matching import interpolate
from components.learning.guidance_bank import GuidanceBank
from components.learning.losses import flow_matching_loss
from components.learning.methods.purecc import frozen_velocities, pure_learning_loss
from components.learning.offload import activations_on_host
from components.learning.task import Task, initial_embeddings
from components.settings import LoraSettings, Profile, load_profile

MakeProfile = Callable[..., Profile]


@pytest.fixture
def theta1(backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path) -> Path:
    return train_extractor(backbone, concept, profile(), tmp_path / "theta1", NullTracker())


def trained(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors") | load_file(folder / "concept_embeddings.safetensors")


@pytest.mark.parametrize("original", ["frozen", "trainable"])
def test_activations_on_the_host_change_no_bit(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path, original: str
) -> None:
    found = {}
    for wanted in ("false", "true"):
        settings = profile(f"learning.original={original}", f"learning.offload_activations={wanted}")
        found[wanted] = trained(train_pure(backbone, concept, settings, theta1, tmp_path / wanted, NullTracker()))
    assert all(torch.equal(value, found["true"][name]) for name, value in found["false"].items())


def test_what_waits_on_the_host_is_a_copy_and_no_weight() -> None:
    """A layer saves its input and its weight: the one is copied, the other never."""
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    saved: list[Tensor] = []
    to_cpu = torch.Tensor.copy_

    def counted(self: Tensor, source: Tensor) -> Tensor:
        saved.append(source)
        return to_cpu(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", counted)
        with activations_on_host():
            hidden = (2 * x).requires_grad_()
            out = layer(torch.nn.functional.gelu(hidden)).square().sum()
    addresses = {value.data_ptr() for value in saved}
    assert hidden.data_ptr() in addresses
    assert layer.weight.data_ptr() not in addresses
    out.backward()
    expected = torch.autograd.grad(layer(torch.nn.functional.gelu(hidden)).square().sum(), hidden)[0]
    assert torch.equal(hidden.grad, expected)  # type: ignore[arg-type]


def losses(
    backbone: SD3Backbone, concept: Concept, settings: Profile, *only: str
) -> dict[str, tuple[float, list[Tensor]]]:
    """Loss and gradients of one step of each kind, at a fixed point."""
    encoded = EncodedConcept.encode(backbone, concept)
    rows = initial_embeddings(backbone, encoded, 0)
    for seed, name in enumerate(("theta1", "theta2")):
        lora = LoraSettings()
        backbone.create_adapter(name, concept=concept.name, lora=lora, embeddings_NRD=rows + 0.1 * seed, seed=seed)
        for value in backbone.parameters(name)["lora"].values():
            value.data += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    parameters = [value for kind in backbone.parameters("theta2").values() for value in kind.values()]
    batch = encoded.batch([0, 1])
    noise = torch.randn(batch.x_0_BCHW.shape, generator=torch.Generator().manual_seed(5))
    flow = interpolate(batch.x_0_BCHW, noise, torch.tensor([0.3, 0.7]))
    cases = {"stage 1": flow_matching_loss(backbone, "theta2")}
    for original in ("frozen", "detached", "trainable"):
        learning = settings.learning.model_copy(update={"original": original})
        cases[original] = pure_learning_loss(backbone, "theta2", "theta1", learning)
    found = {}
    try:
        for value in parameters:
            value.requires_grad_(True)
        for name, loss in cases.items():
            if only and name not in only:
                continue
            total = loss(flow, batch).total
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            found[name] = (float(total.detach()), [each for each in gradients if each is not None])
    finally:
        for name in ("theta1", "theta2"):
            backbone.remove_adapter(name)
    return found


def apart(a: dict[str, tuple[float, list[Tensor]]], b: dict[str, tuple[float, list[Tensor]]]) -> float:
    """The largest relative difference of a loss or of a whole gradient."""
    worst = 0.0
    for name, (loss, gradient) in a.items():
        other_loss, other = b[name]
        flat, flat_other = (torch.cat([value.flatten() for value in values]) for values in (gradient, other))
        worst = max(worst, abs(loss - other_loss) / loss, float((flat - flat_other).norm() / flat.norm()))
    return worst


@pytest.mark.slow
@pytest.mark.long  # tracing every block takes as long as all other tests here
def test_compiled_blocks_give_the_same_loss_and_gradients(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile
) -> None:
    """Traced and differentiated ahead, as every backend of torch.compile gets it; relative tolerance 1e-4."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.debugging import aot_eager

        calls.append(len(inputs))
        return aot_eager(graph, inputs)

    expected = losses(backbone, concept, profile(), "stage 1")
    with compiled(backbone.adapted, backend=backend):
        found = losses(backbone, concept, profile(), "stage 1")
    assert calls, "something was compiled"
    assert apart(expected, found) < 1e-4
    before = len(calls)
    assert apart(losses(backbone, concept, profile(), "stage 1"), expected) == 0, "afterwards nothing is compiled"
    assert len(calls) == before


def test_int8_weights_are_near_the_base_and_leave_it_as_it_was(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    linears = frozen_linears(backbone.transformer)
    before = {name: module.weight.detach().clone() for name, module in linears.items()}
    expected = losses(backbone, concept, profile())
    with int8_weights(backbone.transformer):
        assert not any(type(module.weight.data) is Tensor for module in linears.values())
        found = losses(backbone, concept, profile())
    assert 1e-6 < apart(expected, found) < 0.05, "rounding to 255 values is there, and small"
    assert all(torch.equal(module.weight, before[name]) for name, module in linears.items())
    assert apart(losses(backbone, concept, profile()), expected) == 0
    settings = profile("learning.quantize_base=int8")
    folder = train_pure(backbone, concept, settings, theta1, tmp_path / "int8", NullTracker())
    assert any(bool(value.any()) for name, value in trained(folder).items() if "lora_B" in name)
    assert all(
        torch.equal(module.weight, before[name]) for name, module in frozen_linears(backbone.transformer).items()
    )


def test_a_missing_extra_is_named(backbone: SD3Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InvalidInput, match=r"purecc\[quantization\]"), int8_weights(backbone.transformer):
        pass


@pytest.mark.parametrize("original", ["frozen", "detached", "trainable"])
def test_the_bank_holds_what_a_step_would_compute(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, original: str
) -> None:
    """The same loss and gradients as at the same points without a bank; relative tolerance 1e-5 (other batches)."""
    settings = profile(f"learning.original={original}", "learning.guidance_bank=3", "learning.dop_weight=0.5")
    task = Task.of(backbone, concept, settings, "pure-learning", extractor=theta1)
    try:
        rows = task.load_extractor()
        task.add_adapter(lora=settings.learning.lora, embeddings_NRD=rows)
        parameters = [value for kind in backbone.parameters(task.stage).values() for value in kind.values()]
        for value in parameters:
            value.data += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
            value.requires_grad_(True)
        fixed = frozen_velocities(backbone, "extractor", settings.learning)
        counted: list[int] = []
        bank = GuidanceBank(
            task.encoded,
            lambda flow, batch: (counted.append(len(flow.t_B)), fixed(flow, batch))[1],
            settings.learning,
            seed=0,
            stage="pure-learning",
            shift=backbone.timestep_shift,
        )
        bank.fill()
        assert sum(counted) == 3 * len(concept.references), "each point once"
        loss = pure_learning_loss(backbone, task.stage, "extractor", settings.learning)
        flow, batch = bank.draw([2, 0], [1, 2])
        assert batch.fixed is not None
        banked, fresh = loss(flow, batch), loss(flow, replace(batch, fixed=None))
        gradients = [
            torch.cat(
                [
                    value.flatten()
                    for value in torch.autograd.grad(each.total, parameters, allow_unused=True)
                    if value is not None
                ]
            )
            for each in (banked, fresh)
        ]
        assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5
        for name, value in fresh.metrics.items():
            torch.testing.assert_close(banked.metrics[name], value, rtol=1e-4, atol=1e-6, msg=name)
        again, _ = bank.draw([0, 2], [2, 1])
        assert torch.equal(again.x_t_BCHW, flow.x_t_BCHW.flip(0)), "a point depends on its reference and draw alone"
        assert not torch.equal(bank.draw([2], [0])[0].t_B, bank.draw([2], [1])[0].t_B)
    finally:
        task.remove_adapters()


def test_a_training_on_a_bank_resumes_and_does_no_pass_of_the_extractor_in_its_steps(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[set[str | None]] = []
    velocities = backbone.velocities

    def recorded(x_BCHW: Tensor, t_B: Tensor, conditions: list[tuple[TextEncoding, str | None]]) -> list[Tensor]:
        asked.append({adapter for _, adapter in conditions})
        return velocities(x_BCHW, t_B, conditions)

    monkeypatch.setattr(backbone, "velocities", recorded)
    settings = profile("learning.guidance_bank=2", "learning.checkpoint_every=3")
    whole = train_pure(backbone, concept, settings, theta1, tmp_path / "whole", NullTracker())
    filled = [each for each in asked if "extractor" in each]
    assert asked[: len(filled)] == filled, "the bank is filled before the first step"
    assert len(asked) - len(filled) == 2 * settings.learning.pure.steps, "one pass a step, and an empty one"

    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "adapter")
    again = train_pure(backbone, concept, settings, theta1, tmp_path / "part", NullTracker())
    assert all(torch.equal(value, trained(again)[name]) for name, value in trained(whole).items())


def test_encodings_are_made_once_and_are_the_same_bytes(
    backbone: SD3Backbone, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    plain = EncodedConcept.encode(backbone, concept)
    first = EncodedConcept.encode(backbone, concept, folder=tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "encode_text", refuse)
        patch.setattr(backbone, "encode_image", refuse)
        kept = EncodedConcept.encode(backbone, concept, folder=tmp_path)
        with pytest.raises(AssertionError, match="encoded again"):
            EncodedConcept.encode(backbone, concept, more=["a star"], folder=tmp_path)
    for found in (first, kept):
        assert found.digests == plain.digests
        assert found.positions == plain.positions
        assert found.texts.concept_rows == plain.texts.concept_rows
        assert torch.equal(found.texts.context_BLD, plain.texts.context_BLD)
        assert torch.equal(found.texts.pooled_BP, plain.texts.pooled_BP)
        assert all(torch.equal(value, plain.latents[digest]) for digest, value in found.latents.items())

    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-4] + b"!!!!")
    with caplog.at_level(logging.WARNING):
        mended = EncodedConcept.encode(backbone, concept, folder=tmp_path)
    assert "damaged" in caplog.text
    assert torch.equal(mended.texts.context_BLD, plain.texts.context_BLD)
    monkeypatch.setattr(backbone, "_fingerprint", "another base")
    monkeypatch.setattr(backbone, "encode_text", refuse)
    with pytest.raises(AssertionError, match="encoded again"):
        EncodedConcept.encode(backbone, concept, folder=tmp_path)


def test_both_stages_share_the_encodings_of_the_project(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, theta1: Path, project: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert any((project / ".purecc" / "encodings").iterdir())

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(backbone, "encode_text", refuse)
    monkeypatch.setattr(backbone, "encode_image", refuse)
    train_pure(backbone, concept, profile(), theta1, tmp_path / "theta2", NullTracker())


def test_settings_that_are_off_leave_the_digest_of_a_stage_as_it_was(repository: Path) -> None:
    """What was trained before they existed still counts as unchanged."""
    names = {"guidance_bank", "compile", "quantize_base", "offload_activations"}
    tiny = str(repository / "profiles" / "tiny.yaml")
    off = load_profile(tiny).learning
    assert not names & off.of_stage("pure-learning").keys()
    for name, value in (("guidance_bank", 4), ("compile", "true"), ("quantize_base", "int8")):
        on = load_profile(tiny, [f"learning.{name}={value}"]).learning
        assert name in on.of_stage("pure-learning")
        assert (name in on.of_stage("extractor")) == (name != "guidance_bank")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["learning.method=dreambooth", "learning.quantize_base=int8"], "base's own weights"),
        (["learning.stages=merged", "learning.guidance_bank=4"], "frozen extractor"),
        (["learning.method=lora", "learning.guidance_bank=4"], "would be ignored"),
    ],
)
def test_what_cannot_go_together_is_refused(repository: Path, settings: list[str], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        load_profile(str(repository / "profiles" / "tiny.yaml"), settings)
