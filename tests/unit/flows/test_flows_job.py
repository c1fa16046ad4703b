from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from components.concepts.concept import Concept
from components.files import write_manifest
from components.learning_settings import Method, PureSettings
from components.settings import Profile, load_profile
from flows.job import VERSIONS, Job


@pytest.fixture
def make(project: Path) -> Callable[..., Job]:
    """Makes a job of the tiny profile with settings and fingerprints of one's choice."""

    def build(*overrides: str, data: str = "d", base: str = "b", profile: Profile | None = None) -> Job:
        concept = Concept("star", "instance", "star", "CC0-1.0", "test", project / "data" / "concepts" / "star", ())
        settings = profile or load_profile("tiny", overrides)
        return Job(project, concept, settings, data, "0.dir", "data.dvc", base)

    return build


def _keys(job: Job) -> dict[str, str]:
    return {
        "validation": job.validation().key,
        "extractor": job.extractor().key,
        "pure-learning": job.pure("e").key,
        "evaluation": job.evaluation("a").key,
    }


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["concepts.minimum_side=32"], {"validation"}),
        (["learning.eta=1.5"], {"pure-learning"}),
        (["learning.original=detached"], {"pure-learning"}),
        (["learning.pure.steps=9"], {"pure-learning"}),
        (["learning.references=2"], {"extractor", "pure-learning"}),
        (["learning.lambda_star.per=batch"], {"pure-learning"}),
        (["learning.dop_weight=0.5"], {"pure-learning"}),
        (["learning.embeddings=single"], {"extractor", "pure-learning"}),
        (["learning.lora.rank=2"], {"pure-learning"}),  # the tiny profile's extractor has embeddings alone
        (["learning.extractor.steps=9"], {"extractor"}),  # stage 2 follows by the digest of stage 1's adapter
        (["learning.batch_size=1"], {"extractor", "pure-learning"}),
        (["learning.checkpoint_every=7", "learning.preview_every=3"], set()),
        (["evaluation.seeds=2"], {"evaluation"}),
        (["gates.loss.minimum=1"], set()),
        (["seed=1"], {"extractor", "pure-learning", "evaluation"}),
        (["base.resolution=32"], {"extractor", "pure-learning", "evaluation"}),
        (["base.path=elsewhere", "base.device=auto", "base.threads=3"], set()),  # its fingerprint counts
        (["name=other"], set()),
    ],
)
def test_a_setting_changes_the_stages_that_it_matters_to(
    make: Callable[..., Job], overrides: list[str], changed: set[str]
) -> None:
    before, after = _keys(make()), _keys(make(*overrides))
    assert {stage for stage in before if before[stage] != after[stage]} == changed


def test_a_gate_of_another_kind_makes_nothing_stale(make: Callable[..., Job]) -> None:
    job = make()
    assert job.concept.kind == "instance"
    assert make("gates_by_kind.style={loss: {maximum: 1}}").inputs == job.inputs
    assert make("gates_by_kind.instance={loss: {maximum: 1}}").inputs.key != job.inputs.key


def test_data_base_and_parents_change_what_depends_on_them(make: Callable[..., Job]) -> None:
    job = make()

    def changed(other: Job) -> set[str]:
        return {stage for stage, key in _keys(job).items() if _keys(other)[stage] != key}

    assert changed(make(data="d2")) == {"validation", "extractor", "pure-learning", "evaluation"}
    assert changed(make(base="b2")) == {"extractor", "pure-learning", "evaluation"}
    assert job.pure("e").key != job.pure("e2").key != job.pure(None).key
    assert job.evaluation("a").key != job.evaluation("a2").key


def test_a_plain_lora_does_not_depend_on_what_only_purecc_reads(make: Callable[..., Job], project: Path) -> None:
    lora = make("learning.method=lora")
    assert not lora.trains_extractor
    profile = project / "profiles" / "tiny.yaml"
    profile.write_text(
        profile.read_text().replace("eta: 0.3", "eta: 2").replace("embeddings, steps: 120", "embeddings, steps: 7")
    )
    assert make().pure("e").key != lora.pure("e").key
    assert lora.pure(None).key == make("learning.method=lora").pure(None).key


def test_earlier_adapters_count_by_their_content(make: Callable[..., Job], project: Path) -> None:
    folder = project / "earlier"
    keys = set()
    for content in ("one", "two"):
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text(content)
        write_manifest(folder)
        keys |= {make("learning.method=cifc", "learning.earlier=[earlier]").pure(None).key}
        (folder / "provenance.json").write_text(content)
        write_manifest(folder)
        keys |= {make("learning.method=cifc", "learning.earlier=[earlier]").pure(None).key}
    assert len(keys | {make("learning.method=cifc").pure(None).key}) == 3


def test_the_prompt_set_counts_by_its_content(make: Callable[..., Job], project: Path) -> None:
    before = make().evaluation("a").key
    prompts = project / "profiles" / "prompts" / "world.yaml"
    prompts.write_text(prompts.read_text() + "\n# a note\n")
    assert make().evaluation("a").key != before


def test_the_evaluators_count_by_their_content_and_not_by_their_times(make: Callable[..., Job], project: Path) -> None:
    clip = project / "infra" / "models" / "tiny-evaluators" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"1")
    before = make().evaluation("a").key
    (clip / "model.safetensors").touch()
    assert make().evaluation("a").key == before
    (clip / "model.safetensors").write_bytes(b"2")
    assert make().evaluation("a").key != before


@pytest.mark.parametrize("stages", ["separate", "merged"])
def test_every_learning_setting_counts_in_one_stage_at_least(make: Callable[..., Job], stages: str) -> None:
    """A setting that someone adds must not be forgotten in the keys: only those of the course may be left out."""
    counted: set[str] = set()
    for method in get_args(Method):
        given = ["learning.b_lora={content: [0], style: [1]}"] if method == "b-lora" else []
        given += [f"learning.stages={stages}"] if method == "purecc" else []
        # counted where they are on, so that what was trained before there were such settings is still unchanged
        given += ["learning.compile=true", "learning.quantize_base=int8", "learning.offload_activations=true"] * (
            method == "lora"
        )
        given += ["learning.guidance_bank=4"] * (method == "purecc" and stages == "separate")
        job = make(f"learning.method={method}", *given)
        read = {**job.extractor().inputs["learning"], **job.pure("e").inputs["learning"]}
        assert not set(read) & set(job.profile.learning.unread())
        counted |= set(read)
        counted |= {f"pure.{name}" for name in read["pure"]}
    left_out = set(make().profile.learning.model_dump()) - counted
    no_bank = {"guidance_bank"} if stages == "merged" else set()
    assert left_out <= {"checkpoint_every", "preview_every", "snapshot_steps"} | no_bank
    assert {f"pure.{name}" for name in PureSettings.model_fields} <= counted


def test_the_method_version_of_training_is_that_of_the_keys() -> None:
    from components.learning.stages import METHOD_VERSION

    assert str(VERSIONS["extractor"]) == str(VERSIONS["pure-learning"]) == METHOD_VERSION
