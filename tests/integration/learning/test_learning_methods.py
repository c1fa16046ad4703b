"""Every method: exactly what trains, its loss against a second implementation, and a resume to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.concepts.concept import Concept
from components.errors import InvalidInput
from components.learning import NullTracker, train_extractor, train_pure
from components.learning.flow_matching import FlowSample, interpolate
from components.learning.history import read_history
from components.learning.methods import METHODS
from components.learning.methods.dreambooth_ewc import fisher_information
from components.learning.methods.prior import Prior, prior_texts
from components.learning.stages import Recipe
from components.learning.task import PURE, Task
from components.learning_settings import Method
from components.settings import Profile

MakeProfile = Callable[..., Profile]
Numbers = np.ndarray[Any, np.dtype[np.float64]]
ALL: tuple[Method, ...] = get_args(Method)
LORA_ONLY, BOTH = {"lora"}, {"lora", "embeddings"}
KINDS: dict[str, set[str]] = {
    "purecc": BOTH,
    "lora": LORA_ONLY,
    "dop": LORA_ONLY,
    "b-lora": LORA_ONLY,
    "mix-of-show": BOTH,
    "cifc": BOTH,
    "textual-inversion": {"embeddings"},
    "dreambooth": {"weights"},
    "dreambooth-ewc": {"weights"},
    "custom-diffusion": {"weights", "embeddings"},
}
DEAD = ("attn.add_q_proj", "attn.to_add_out")
"""The last block drops its context stream: queries from the context lead nowhere there."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("earlier")


def settings_of(method: str, profile: MakeProfile, earlier: Path, *more: str) -> Profile:
    given = [f"learning.method={method}", *more]
    return profile(*given, *([f"learning.earlier=[{earlier}]"] if method == "cifc" else []))


@pytest.fixture
def learned_before(backbone: SD3Backbone, concept: Concept, profile: MakeProfile, earlier: Path) -> Path:
    """A trained LoRA of another seed: the concept learned before, for cifc."""
    if not (earlier / "adapter").exists():
        settings = profile("learning.method=mix-of-show", "seed=7", "learning.pure.steps=1")
        train_pure(backbone, concept, settings, None, earlier, NullTracker())
    return earlier / "adapter"


def linear_layers(backbone: SD3Backbone) -> dict[str, nn.Linear]:
    """Every attention projection, found without the list of names."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in backbone.transformer.named_modules()
        if isinstance(module, nn.Linear) and (".attn." in name or ".attn2." in name) and ".lora_" not in name
    }


def own_weights(backbone: SD3Backbone) -> dict[str, nn.Parameter]:
    """The base's weights; peft leaves its layers around them when the last LoRA is gone."""
    return {
        name.replace(".base_layer", ""): value
        for name, value in backbone.transformer.named_parameters()
        if ".lora_" not in name
    }


def expected_names(method: str, backbone: SD3Backbone) -> dict[str, set[str]]:
    """Kind -> names of what has to train, from the untouched transformer's own structure."""
    assert backbone.adapted.names == ()
    layers = linear_layers(backbone)
    chosen = [name for name in layers if method != "b-lora" or name.split(".")[1] in ("1", "2")]
    everything = set(own_weights(backbone))
    weights = {
        "dreambooth": everything,
        "dreambooth-ewc": {name for name in everything if name.rpartition(".")[0] in layers},
        "custom-diffusion": {f"{name}.weight" for name in layers if name.endswith(("add_k_proj", "add_v_proj"))},
    }
    found = {
        "lora": {f"{name}.lora_{matrix}.weight" for name in chosen for matrix in "AB"},
        "embeddings": {"Y_NRD"},
        "weights": weights.get(method, set()),
    }
    return {kind: found[kind] for kind in KINDS[method]}


def theta1(backbone: SD3Backbone, concept: Concept, settings: Profile, folder: Path) -> Path | None:
    if not settings.learning.has_extractor:
        return None
    return train_extractor(backbone, concept, settings, folder, NullTracker())


def base_state(backbone: SD3Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in own_weights(backbone).items()}


def test_every_method_is_tested_here() -> None:
    assert set(METHODS) == set(ALL) == set(KINDS)


@pytest.mark.parametrize("method", ALL)
def test_exactly_what_a_method_says_trains(
    backbone: SD3Backbone,
    concept: Concept,
    profile: MakeProfile,
    learned_before: Path,
    tmp_path: Path,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the recipe names, what requires a gradient in a step, what the step changes, what the folder holds."""
    settings = settings_of(method, profile, learned_before, "learning.pure.steps=1")
    expected, before = expected_names(method, backbone), base_state(backbone)
    extractor = theta1(backbone, concept, settings, tmp_path / "theta1")
    seen: dict[str, Any] = {}
    prepare = METHODS[settings.learning.method]

    def watched(task: Task) -> Recipe:
        recipe = prepare(task)
        seen["groups"] = {group.name: set(group.parameters) for group in recipe.groups}
        seen["start"] = {
            kind: {name: value.detach().clone() for name, value in values.items()}
            for kind, values in backbone.parameters(PURE).items()
        }

        def loss(flow: FlowSample, batch: Any) -> Any:
            wanted = {id(value) for group in recipe.groups for value in group.parameters.values()}
            every = [*backbone.transformer.parameters()]
            for adapter in backbone.adapted.names:
                every += [value for kind in backbone.parameters(adapter).values() for value in kind.values()]
            assert {id(value) for value in every if value.requires_grad} == wanted
            return recipe.loss(flow, batch)

        return Recipe(recipe.groups, loss, recipe.kept_blocks)

    monkeypatch.setitem(METHODS, settings.learning.method, watched)  # type: ignore[arg-type]
    folder = train_pure(backbone, concept, settings, extractor, tmp_path / "pure", NullTracker())
    assert seen["groups"] == expected
    assert set(seen["start"]) == set(expected), "nothing else is in the adapter"
    after = base_state(backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)

    files = {path.name for path in folder.iterdir()} - {"SHA256SUMS", "concept.yaml"}
    lora = {"adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"}
    assert files == {"concept_embeddings.safetensors"} | (lora if "lora" in expected else set()) | (
        {"weight_differences.safetensors"} if "weights" in expected else set()
    )
    last = f"transformer_blocks.{len(backbone.transformer.transformer_blocks) - 1}."

    def dead(name: str) -> bool:
        return name.startswith(last) and any(part in name for part in DEAD)

    if "embeddings" in expected:
        (rows,) = load_file(folder / "concept_embeddings.safetensors").values()
        assert ((rows - seen["start"]["embeddings"]["Y_NRD"]).abs().amax(-1) > 0).all()
    if "lora" in expected:
        stored = load_file(folder / "adapter_model.safetensors")
        names = {name.removeprefix("base_model.model.") for name in stored}
        kept = {name for name in expected["lora"] if method != "b-lora" or name.split(".")[1] == "1"}
        assert names == kept, "b-lora keeps the content blocks of an instance"
        moved = {name for name in names if "lora_B" in name and bool(stored[f"base_model.model.{name}"].any())}
        # cifc's penalty pulls on every matrix, also where the flow does not reach
        assert moved == {name for name in kept if "lora_B" in name and (method == "cifc" or not dead(name))}
    if "weights" in expected:
        stored = load_file(folder / "weight_differences.safetensors")
        assert set(stored) == expected["weights"]
        still = {name for name, value in stored.items() if not value.any()}
        # add_q of the last block, its norm of the query; and a key's bias shifts each logit of a query alike
        assert all(dead(name) or "norm_added_q" in name or name.endswith("k_proj.bias") for name in still)
        assert len(still) < 0.1 * len(stored) + 1
    backbone.load_adapter(folder, "loaded")  # it changes the model, or this raises
    backbone.remove_adapter("loaded")


@pytest.mark.parametrize("method", ALL)
def test_a_resumed_training_ends_in_the_same_bytes(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, learned_before: Path, tmp_path: Path, method: str
) -> None:
    """Interrupted after step 3 of 4, it goes on from step 2; what a method draws besides is drawn again."""
    settings = settings_of(
        method,
        profile,
        learned_before,
        "learning.pure.steps=4",
        "learning.checkpoint_every=2",
        "learning.ema_decay=0.9",
    )
    extractor = theta1(backbone, concept, settings, tmp_path / "theta1")
    whole = train_pure(backbone, concept, settings, extractor, tmp_path / "whole", NullTracker())

    class Interrupting(NullTracker):
        def log_metrics(self, metrics: Any, step: int) -> None:
            if step == 2:  # handed out before its checkpoint is written
                return
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_pure(backbone, concept, settings, extractor, tmp_path / "broken", Interrupting())
    assert backbone.adapted.names == ()
    resumed = train_pure(backbone, concept, settings, extractor, tmp_path / "broken", NullTracker())
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == {f.name: f.read_bytes() for f in resumed.iterdir()}
    rows = [read_history(tmp_path / name / "history.jsonl") for name in ("whole", "broken")]
    assert [row["loss/total"] for row in rows[0]] == [row["loss/total"] for row in rows[1]]


# losses


def number(value: Tensor) -> Numbers:
    return np.asarray(value.detach().double().numpy())


class Bench:
    """A task whose adapter has left its start, with one batch; velocities one at a time, as numpy arrays."""

    def __init__(
        self, backbone: SD3Backbone, concept: Concept, settings: Profile, extractor: Path | None, earlier: Path
    ):
        self.backbone, self.settings = backbone, settings.learning
        texts = prior_texts(concept)
        self.task = Task.of(
            backbone, concept, settings, PURE, more_texts=texts, extractor=extractor, earlier=(earlier,)
        )
        self.recipe = METHODS[settings.learning.method](self.task)
        random = torch.Generator().manual_seed(11)
        for kind in backbone.parameters(PURE).values():
            for value in kind.values():
                value.data += 0.05 * torch.randn(value.shape, generator=random)
        self.batch = self.task.encoded.batch([0, 1, 2])
        noise = torch.randn(self.batch.x_0_BCHW.shape, generator=random)
        self.flow = interpolate(self.batch.x_0_BCHW, noise, torch.tensor([0.2, 0.5, 0.8]))

    def loss(self) -> Any:
        from dataclasses import replace

        return self.recipe.loss(self.flow, replace(self.batch, random=torch.Generator().manual_seed(4)))

    @torch.no_grad()
    def v(self, text: TextEncoding, adapter: str | None, flow: FlowSample | None = None) -> Numbers:
        at = flow or self.flow
        single = [
            self.backbone.velocity(at.x_t_BCHW[i : i + 1], at.t_B[i : i + 1], text.select([i]), adapter)
            for i in range(len(at.t_B))
        ]
        return number(torch.cat(single))

    def cc(self) -> float:
        return float(((self.v(self.batch.complete, PURE) - number(self.flow.target_BCHW)) ** 2).mean())

    def prior(self) -> float:
        """The same loss on the base's own images, with the draws written out again."""
        prior = Prior.draw(self.task)
        random = torch.Generator().manual_seed(4)
        chosen = torch.randint(len(prior.latents_NCHW), (3,), generator=random)
        t = torch.sigmoid(torch.randn(3, generator=random))
        shift = self.backbone.timestep_shift
        t = shift * t / (1 + (shift - 1) * t)
        x_0 = prior.latents_NCHW[chosen]
        x_1 = torch.randn(x_0.shape, generator=random)
        flow = FlowSample((1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * x_1, t, x_1 - x_0)
        text = self.backbone.encode_text(["a star"] * 3)
        return float(((self.v(text, PURE, flow) - number(x_1 - x_0)) ** 2).mean())


@pytest.fixture
def bench(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, learned_before: Path, tmp_path: Path
) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(method: str, *more: str) -> Bench:
        settings = settings_of(method, profile, learned_before, *more)
        short = settings.model_copy(
            update={
                "learning": settings.learning.model_copy(
                    update={"extractor": settings.learning.extractor.model_copy(update={"steps": 2})}
                )
            }
        )
        extractor = theta1(backbone, concept, short, tmp_path / "theta1")
        made.append(Bench(backbone, concept, settings, extractor, learned_before))
        return made[-1]

    yield make
    for each in made:
        each.task.remove_adapters()


@pytest.mark.parametrize("method", ["lora", "textual-inversion", "mix-of-show"])
def test_plain_flow_matching(bench: Callable[..., Bench], method: str) -> None:
    given = bench(method)
    assert float(given.loss().total) == pytest.approx(given.cc(), rel=1e-4)


def test_b_lora_reads_the_target_text(bench: Callable[..., Bench]) -> None:
    given = bench("b-lora")
    target = given.v(given.batch.target, PURE) - number(given.flow.target_BCHW)
    assert float(given.loss().total) == pytest.approx(float((target**2).mean()), rel=1e-4)


@pytest.mark.parametrize("method", ["dreambooth", "custom-diffusion"])
def test_prior_preservation(bench: Callable[..., Bench], method: str) -> None:
    given = bench(method, "learning.prior.weight=0.7")
    step = given.loss()
    assert float(step.metrics["loss/prior"]) == pytest.approx(given.prior(), rel=1e-4)
    assert float(step.total) == pytest.approx(given.cc() + 0.7 * given.prior(), rel=1e-4)


def test_elastic_weights(bench: Callable[..., Bench], backbone: SD3Backbone) -> None:
    """The Fisher information by gradients of the base's own weights, without any adapter."""
    given = bench("dreambooth-ewc", "learning.ewc_weight=3")
    prior = Prior.draw(given.task)
    differences = {name: value.detach().clone() for name, value in backbone.parameters(PURE)["weights"].items()}
    weights = {name: value for name, value in own_weights(backbone).items() if name in differences}
    squares = {name: np.zeros(value.shape) for name, value in weights.items()}
    from components.learning.randomness import generator

    for value in weights.values():
        value.requires_grad_(True)
    for image in range(3):
        random = generator(0, "fisher", image)
        for _ in range(4):
            torch.randint(1, (1,), generator=random)
            t = torch.sigmoid(torch.randn(1, generator=random))
            t = 3 * t / (1 + 2 * t)
            x_0 = prior.latents_NCHW[image : image + 1]
            x_1 = torch.randn(x_0.shape, generator=random)
            v = backbone.velocity((1 - t) * x_0 + t * x_1, t, backbone.encode_text(["a star"]), None)
            backbone.transformer.zero_grad(set_to_none=True)
            ((v - (x_1 - x_0)) ** 2).mean().backward()
            for name, value in weights.items():
                if value.grad is not None:
                    squares[name] += number(value.grad) ** 2
    backbone.transformer.zero_grad(set_to_none=True)
    for value in weights.values():
        value.requires_grad_(False)
    mean = np.concatenate([value.ravel() for value in squares.values()]).mean()
    penalty = sum(float((squares[name] / mean * number(differences[name]) ** 2).sum()) for name in squares) / 2
    step = given.loss()
    assert float(step.metrics["loss/ewc"]) == pytest.approx(penalty, rel=2e-3)
    assert float(step.total) == pytest.approx(given.cc() + given.prior() + 3 * penalty, rel=2e-3)


def test_the_fisher_information_is_a_mean_of_one(bench: Callable[..., Bench], backbone: SD3Backbone) -> None:
    given = bench("dreambooth-ewc")
    found = fisher_information(backbone, PURE, Prior.draw(given.task), given.settings, 0)
    values = np.concatenate([number(value).ravel() for value in found.values()])
    assert values.min() >= 0
    assert values.mean() == pytest.approx(1, rel=1e-4)


def test_differential_output_preservation(bench: Callable[..., Bench]) -> None:
    given = bench("dop", "learning.dop_weight=0.4")
    drift = given.v(given.batch.base, PURE) - given.v(given.batch.base, None)
    assert float(given.loss().total) == pytest.approx(given.cc() + 0.4 * float((drift**2).mean()), rel=1e-4)


def test_cifc_keeps_apart_from_earlier_concepts(
    bench: Callable[..., Bench], backbone: SD3Backbone, learned_before: Path
) -> None:
    given = bench("cifc", "learning.orthogonality_weight=0.3")
    old = load_file(learned_before / "adapter_model.safetensors")
    crossed, raised = [], []
    for name, value in backbone.parameters(PURE)["lora"].items():
        if "lora_B" in name:
            up, before = number(value), number(old[f"base_model.model.{name}"])
            crossed.append(np.abs(np.einsum("ir,jr->ij", up, before)).mean())
            raised.append(((up - 1) ** 2).mean())
    apart = float(np.mean(crossed) + np.mean(raised))
    assert float(given.loss().total) == pytest.approx(given.cc() + 0.3 * apart, rel=1e-4)


def test_what_was_learned_before_may_be_given_by_the_caller(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, learned_before: Path, tmp_path: Path
) -> None:
    """As a sequence of concepts does it; other methods have no use for it."""
    few = "learning.pure.steps=1"
    stated = settings_of("cifc", profile, learned_before, few)
    one = train_pure(backbone, concept, stated, None, tmp_path / "stated", NullTracker())
    given = [learned_before]
    settings = profile("learning.method=cifc", few)
    two = train_pure(backbone, concept, settings, None, tmp_path / "given", NullTracker(), earlier=given)
    alone = train_pure(backbone, concept, settings, None, tmp_path / "alone", NullTracker())
    name = "adapter_model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes() != (alone / name).read_bytes()
    lora = profile("learning.method=lora", few)
    train_pure(backbone, concept, lora, None, tmp_path / "lora", NullTracker(), earlier=given)
    assert "loss/orthogonality" not in read_history(tmp_path / "lora" / "history.jsonl")[0]


def test_cifc_refuses_what_is_no_earlier_lora(
    backbone: SD3Backbone, concept: Concept, profile: MakeProfile, tmp_path: Path
) -> None:
    few = "learning.pure.steps=1"
    inversion = profile("learning.method=textual-inversion", few)
    folder = train_pure(backbone, concept, inversion, None, tmp_path / "ti", NullTracker())
    settings = profile("learning.method=cifc", few, f"learning.earlier=[{folder}]")
    with pytest.raises(InvalidInput, match="no LoRA on every attention projection"):
        train_pure(backbone, concept, settings, None, tmp_path / "cifc", NullTracker())
    assert backbone.adapted.names == ()


# the objective of pure learning under every setting


def pure_by_hand(given: Bench) -> tuple[float, float]:
    """(loss, mean lambda*) by the equations in numpy."""
    s, b = given.settings, given.batch
    complete = given.v(b.complete, PURE)
    towards, contrast = {
        "null": (b.target, b.null),
        "class": (b.target, b.class_text),
        "complete-base": (b.complete, b.base),
    }[s.guidance]
    r_tar = given.v(towards, "extractor") - given.v(contrast, "extractor")
    v_orig = given.v(b.base, None if s.original == "frozen" else PURE)
    r_cb = complete - v_orig
    products = [float(np.vdot(x, y)) for x, y in zip(r_cb, r_tar, strict=True)]
    squares = [float(np.vdot(x, x)) for x in r_tar]
    closed = [p / q for p, q in zip(products, squares, strict=True)]
    if s.lambda_star.per == "batch":
        closed = [sum(products) / sum(squares)] * len(closed)
    scales = list(closed)
    if s.lambda_star.fixed is not None:
        scales = [s.lambda_star.fixed] * len(scales)
    pure = np.mean([(o + k * g - c) ** 2 for o, k, g, c in zip(v_orig, scales, r_tar, complete, strict=True)])
    total = given.cc() + s.eta * float(pure)
    if s.dop_weight:
        drift = given.v(b.base, PURE) - given.v(b.base, None)
        total += s.dop_weight * float((drift**2).mean())
    return total, float(np.mean(closed))


@pytest.mark.parametrize(
    "more",
    [
        ["learning.eta=0"],
        ["learning.eta=2", "learning.lambda_star.fixed=3"],
        ["learning.lambda_star.per=batch"],
        ["learning.lambda_star.fixed=-0.5", "learning.original=detached"],
        ["learning.guidance=complete-base", "learning.original=trainable"],
        ["learning.guidance=class", "learning.dop_weight=0.6"],
        ["learning.dop_weight=0.6", "learning.original=trainable", "learning.lambda_star.per=batch"],
        ["learning.dop_weight=0.6", "learning.original=detached"],
        ["learning.embeddings=single"],
    ],
    ids=" ".join,
)
def test_the_objective_under_every_setting(bench: Callable[..., Bench], more: list[str]) -> None:
    given = bench("purecc", *more)
    expected, closed = pure_by_hand(given)
    step = given.loss()
    assert float(step.total) == pytest.approx(expected, rel=1e-4)
    assert float(step.metrics["lambda_star/mean"]) == pytest.approx(closed, rel=1e-3)
