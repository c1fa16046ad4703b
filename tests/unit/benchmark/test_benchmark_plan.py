from __future__ import annotations

from pathlib import Path

import pytest

from components.benchmark.plan import Plan, read_plan
from components.errors import InvalidInput
from components.settings import load_profile

REPOSITORY = Path(__file__).resolve().parents[3]

PLAN = """
profile: tiny
concepts: [star, heart]
seeds: [0, 1]
steps: [10, 20]
settings: [learning.batch_size=2]
variants:
  lora: [learning.method=lora]
  purecc:
  long: {settings: [learning.eta=2], seeds: [1, 2], steps: [50]}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return read_plan(file)


def test_cells_are_all_trainings_of_the_plan(plan: Plan) -> None:
    found = [(cell.concept, cell.seed, cell.variant) for cell in plan.cells()]
    per_concept = [(0, "lora"), (0, "purecc"), (1, "lora"), (1, "purecc"), (1, "long"), (2, "long")]
    assert found == [(concept, *rest) for concept in ("star", "heart") for rest in per_concept]


def test_a_variant_overrides_what_all_share_and_the_plan_sets_seed_and_length_last(plan: Plan) -> None:
    cell = next(cell for cell in plan.cells() if cell.variant == "long")
    assert cell.overrides == [
        "learning.batch_size=2",
        "learning.eta=2",
        "seed=1",
        "learning.pure.steps=50",
        "learning.snapshot_steps=[]",
    ]
    first = next(plan.cells())
    assert first.overrides[-2:] == ["learning.pure.steps=20", "learning.snapshot_steps=[10]"]


def test_a_part_of_a_plan_keeps_only_what_is_named(plan: Plan) -> None:
    part = plan.only(variants=["long", "lora"], concepts=["heart", "dog"], seeds=[7])
    assert [cell.title for cell in part.cells()] == [
        f"{method} {concept} seed 7" for concept in ("heart", "dog") for method in ("lora", "long")
    ]


def test_a_part_of_a_plan_shows_the_sensitivity_to_a_setting_of_which_it_keeps_two_values_or_more() -> None:
    variants = {"eta 0": ["learning.eta=0"], "eta 1": ["learning.eta=1"], "eta 2": ["learning.eta=2"]}
    points = {float(name[-1]): name for name in variants}
    plan = Plan.model_validate(
        {"concepts": ["star"], "seeds": [0], "steps": [1], "variants": variants, "sensitivities": {"eta": points}}
    )
    assert plan.only().sensitivities == {"eta": points}
    assert plan.only(variants=["eta 0", "eta 2"]).sensitivities == {"eta": {0.0: "eta 0", 2.0: "eta 2"}}
    assert plan.only(variants=["eta 0"]).sensitivities == {}


def test_a_method_that_the_plan_lacks_is_an_error_that_lists_the_known_ones(plan: Plan) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan.only(variants=["sgd"])
    assert caught.value.field == "--methods"
    assert "purecc" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("steps: [20, 10]", "steps"),
        ("steps: [10, 10]", "steps"),
        ("seeds: []", "seeds"),
        ("variant: {}", "variant"),
        ("variants: {x: {sets: []}}", "variants.x.sets"),
        ("variants: {'a, b': []}", "variants"),
    ],
)
def test_a_wrong_plan_names_file_and_field(tmp_path: Path, change: str, field: str) -> None:
    file = tmp_path / "plan.yaml"
    lines = [line for line in PLAN.strip().splitlines() if not line.startswith(change.partition(":")[0] + ":")]
    if change.startswith("variants"):
        lines = [line for line in lines if not line.startswith(" ")]
    file.write_text("\n".join([*lines, change]))
    with pytest.raises(InvalidInput) as caught:
        read_plan(file)
    assert (caught.value.file, caught.value.field) == (file, field)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "profiles" / "benchmarks").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_cell_of_a_shipped_plan_has_settings_that_its_method_reads(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PURECC_HOME", str(REPOSITORY))
    plan = read_plan(file)
    cells = [cell for cell in plan.cells() if (cell.concept, cell.seed) == (plan.concepts[0], plan.seeds[0])]
    assert {cell.variant for cell in cells} == set(plan.variants)
    for cell in cells:
        load_profile(plan.profile, cell.overrides)
