"""The benchmark's report on tables whose figures are known, and the studies of lambda* and leakage."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.evaluation import leakage
from components.evaluation.benchmark_report import Benchmark, write_benchmark
from components.evaluation.charts import Cloud, scatter_chart
from components.evaluation.comparison import compose
from components.evaluation.curve_section import frontier_section
from components.evaluation.curves import Axes
from components.evaluation.document import Chart
from components.evaluation.encoders import Features, unit
from components.evaluation.fidelity import Layout
from components.evaluation.lambda_study import COSINE, LAMBDA, correlation_with, join_histories, lambda_course
from components.evaluation.numbers import figure
from components.evaluation.paper_table import COLUMNS, PAPER, markdown, paper_table, written
from components.evaluation.prompts import Prompt
from components.evaluation.result import EvaluationResult, category_rows
from components.evaluation.segmenters import Segment

AXES = (Axes("fidelity/dino", "preservation/prior_distance", worst=0.5),)


def cells() -> pd.DataFrame:
    """Two methods, three instances and a style, two seeds, two steps: every figure follows from the indices."""
    rows: list[dict[str, Any]] = []
    for m, method in enumerate(("lora", "purecc <new>")):
        for c, (concept, kind) in enumerate((("a", "instance"), ("b", "instance"), ("c", "instance"), ("s", "style"))):
            for seed in (0, 1):
                for step in (40, 80):
                    row = {"method": method, "concept": concept, "kind": kind, "seed": seed, "step": step, "scale": 1.0}
                    row |= {
                        "fidelity/dino": 0.3 + 0.1 * m + 0.05 * c + 0.01 * seed + 0.2 * (step == 80),
                        "fidelity/csd": 0.5 + 0.1 * m + 0.02 * seed if kind == "style" else math.nan,
                        "preservation/prior_distance": 0.2 - 0.05 * m + 0.01 * c + 0.1 * (step == 80),
                        "preservation/clip_t_delta": -4 + m + c + seed,
                        "preservation/background_leakage": 0.5 - 0.4 * m,
                        "preservation/background_leakage_original": 0.1,
                        "cost/seconds_per_step": 1.0 + m,
                    }
                    rows.append(row)
    rows.append({**rows[-1], "method": "dop", "error": "loss not finite at step 12"})
    return pd.DataFrame(rows)


def test_the_papers_table_is_the_mean_over_concepts_with_its_spread_over_seeds() -> None:
    table = paper_table(cells(), "instance").set_index("method")
    # the last step, concepts c = 0, 1, 2: dino 0.5 + 0.05 c + 0.01 seed
    assert table.loc["lora", "fidelity/dino"] == pytest.approx(0.555)
    assert table.loc["lora", "fidelity/dino/std"] == pytest.approx(np.std([0.55, 0.56], ddof=1))
    assert table.loc["lora", "preservation/clip_t_delta"] == pytest.approx(-2.5)
    assert table.loc["lora", "concepts"] == 3
    assert table.loc["lora", "seeds"] == 2
    assert "dop" not in table.index, "its only cell failed"
    assert "preservation/hps_delta" not in table, "was not measured"
    style = paper_table(cells(), "style").set_index("method")
    assert style.loc["purecc <new>", "fidelity/csd"] == pytest.approx(0.61)
    assert "fidelity/dino" not in style, "no column of styles"
    head, rows = written(paper_table(cells(), "instance"), COLUMNS["instance"])
    assert head == ["method", "concepts", "seeds", "ΔCLIP-T ↑", "DINO ↑"]
    assert rows[0] == ["lora", "3", "2", "−2.50 ± 0.71", "0.555 ± 0.007"]
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_one_seed_has_no_spread() -> None:
    one = cells().query("seed == 0")
    assert np.isnan(paper_table(one, "instance")["fidelity/dino/std"]).all()
    assert "±" not in "".join(written(paper_table(one, "instance"), COLUMNS["instance"])[1][0])


def test_the_papers_own_figures_are_those_of_its_tables() -> None:
    instance, style = (PAPER[kind].set_index("method") for kind in ("instance", "style"))
    assert instance.loc["PureCC"].tolist() == [-0.31, 0.10, -0.67, 69.37, 0.81, 0.73]
    assert style.loc["PureCC"].tolist() == [-0.26, -0.92, -0.59, 0.63]
    assert instance.loc["L_CC alone", "preservation/seg_cons"] == 23.74


def history(values: np.ndarray, cosine: np.ndarray) -> list[dict[str, float]]:
    """As training logs it: the first step is 1."""
    return [{"step": step, LAMBDA: a, COSINE: b} for step, (a, b) in enumerate(zip(values, cosine, strict=True), 1)]


def test_the_course_of_lambda_is_told_by_closed_forms() -> None:
    steps = np.arange(100)
    rising = np.minimum(steps, 50) / 50
    table = join_histories(
        [
            ("purecc", "a", 0, history(rising, rising / 2)),
            ("purecc", "b", 0, history(-np.ones(100), np.linspace(0, 1, 100))),
            ("lora", "a", 0, [{"step": 0.0, "loss/cc": 1.0}]),
        ]
    )
    course = lambda_course(table).set_index("concept")
    assert list(course["method"]) == ["purecc", "purecc"], "a run that logs no lambda has no course"
    a, b = course.loc["a"], course.loc["b"]
    assert a["start"] == pytest.approx(np.mean(np.arange(10) / 50))
    assert a["end"] == pytest.approx(1)
    assert a["unrest"] == pytest.approx(0)
    assert a["steps"] == 100
    # The mean of ten values from the s-th on is (s + 3.5) / 50 below s = 42, so 0.9 or more from s = 42 on (0.9045..).
    assert a["settled_at"] == 42
    assert a["pearson"] == pytest.approx(1)
    assert a["spearman"] == pytest.approx(1)
    assert (a["below_zero"], b["below_zero"]) == (0, 1)
    assert b["settled_at"] == 1
    assert math.isnan(b["pearson"]), "it never changes"
    assert b["cosine_end"] == pytest.approx(np.linspace(0, 1, 100)[-10:].mean())
    assert lambda_course(join_histories([])).empty


def test_what_lambda_goes_along_with_is_a_rank_correlation() -> None:
    course = pd.DataFrame({"method": "p", "concept": list("abcd"), "seed": 0, "end": [1.0, 2.0, 3.0, 4.0]})
    points = pd.DataFrame({"method": "p", "concept": list("abcd"), "seed": 0, "m": [1.0, 4.0, 9.0, 2.0]})
    assert correlation_with(course, points, "m")["spearman"] == pytest.approx(0.4)
    assert math.isnan(correlation_with(course[:2], points, "m")["spearman"])


def test_every_part_of_the_report_shows_what_was_measured(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    compose([picture], {"lora": [picture]}, ["a star"]).save(tmp_path / "sheet.png")
    steps = np.linspace(0, 1, 30)
    varied = pd.concat([cells().query("method == 'lora'").assign(value=value) for value in (0.5, 1.0)])
    result = EvaluationResult({}, [{"category": "position", "values": {"fidelity/dino_masked": 0.25}}])
    benchmark = Benchmark(
        cells(),
        "lora",
        axes=AXES,
        levels=(0.5,),
        history=join_histories([("purecc <new>", "a", 0, history(steps, steps))]),
        categories=pd.DataFrame(category_rows(result)).assign(method="lora", concept="a", seed=0),
        sensitivities={"eta": varied.assign(seed=varied["seed"] + 10 * varied["value"].astype(int))},
        sheets={"same seed": tmp_path / "sheet.png"},
        facts={"command": "purecc benchmark"},
    )
    files = write_benchmark(benchmark, tmp_path / "out")
    page, text = files["html"].read_text(), files["markdown"].read_text()
    for title in ("Single points", "Pixel distance, other prompts against DINO", "Pictures", "λ*", "Sensitivity",
                  "Leakage", "Categories of prompts", "Cost", "Failed cells"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
        assert f"## {title}" in text
    for content in ("0.555 ± 0.007", "loss not finite at step 12", "purecc benchmark", "0.25"):
        assert content in page
        assert content in text
    assert "purecc &lt;new&gt;" in page, "names are escaped"
    assert "<new>" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is fetched"
    assert "nan" not in page.lower().replace("nano", "")
    for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text):
        assert (tmp_path / "out" / name).is_file(), name
        if name.endswith(".svg"):
            assert (tmp_path / "out" / name).read_text().startswith("<svg xmlns=")
    tests = pd.read_csv(tmp_path / "out" / "benchmark" / "tests-0.csv")
    assert tests["method"].tolist() == ["purecc <new>"] * 2
    assert tests["figure"].tolist() == ["hypervolume", "damage at the shared fidelity"]
    assert tests["wins"].tolist() == [1.0, 1.0], "more faithful at less damage everywhere"
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    write_benchmark(benchmark, tmp_path / "out")
    assert all(file.read_bytes() == content for file, content in before.items()), "the same cells, the same report"


def test_a_report_of_few_cells_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    one = cells().query("method == 'lora' and concept == 'a' and seed == 0").drop(columns="cost/seconds_per_step")
    page = write_benchmark(Benchmark(one, "lora", axes=AXES), tmp_path)["html"].read_text()
    assert "Single points" in page
    for title in ("Style concepts", "Cost", "Sensitivity", "Failed"):
        assert title not in page


def test_means_of_instances_and_of_styles_are_drawn_apart() -> None:
    section = frontier_section(cells(), AXES[0], (), "lora")
    titles = [part.title for part in section.parts if isinstance(part, Chart)]
    assert titles == [
        "All methods, means over instance concepts and seeds",
        "All methods, means over style concepts and seeds",
        *"abcs",
    ]


def test_a_metric_of_styles_is_shown_for_styles_and_a_method_keeps_its_colour() -> None:
    table = cells().query("not (concept == 's' and method == 'lora')")
    section = frontier_section(table, Axes("fidelity/csd", "preservation/prior_distance", worst=0.5), (), "lora")
    charts = [part for part in section.parts if isinstance(part, Chart)]
    assert [chart.title for chart in charts[1:]] == ["s"]
    for chart in charts:
        assert "d1" in chart.svg
        assert "d0" not in chart.svg, "lora has no point here, its colour is nobody else's"


def test_a_scatter_chart_stays_inside_its_frame() -> None:
    x, y = np.array([0.1, np.nan, 0.9]), np.array([5.0, 1.0, -3.0])
    chart = str(scatter_chart("<t>", [Cloud("<n>", x, y, 12), Cloud("", x[:1], y[:1], 0, joined=False)], "x", "y"))
    assert "&lt;t&gt;" in chart
    assert "&lt;n&gt;" in chart
    circles = [(float(a), float(b)) for a, b in re.findall(r'cx="([^"]*)" cy="([^"]*)"', chart)]
    squares = [(float(a), float(b)) for a, b in re.findall(r'<rect [^>]*x="([^"]*)" y="([^"]*)"', chart)]
    assert len(circles) == 1, "the faint one"
    assert len(squares) == 3, "two points and the legend's: the colours are used up, so they are squares"
    assert all(0 < a < 680 and 0 < b < 380 for a, b in circles + squares)
    many = str(scatter_chart("t", [Cloud(str(n), x, y, n) for n in range(30)], "x", "y"))
    height = float(re.search(r'viewBox="0 0 680 (\d+)"', many)[1])
    assert all(float(b) < height for b in re.findall(r'class="key" x="[^"]*" y="([^"]*)"', many))
    assert "nothing was measured" in scatter_chart("x", [Cloud("a", np.array([np.nan]), np.array([1.0]), 0)], "", "")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.5"), (-0.03214, "−0.0321"), (123456.0, "123456"), (1e-7, "1.0e-07"),
                        (math.nan, "")],
)  # fmt: skip
def test_figures_are_short(value: float, text: str) -> None:
    assert figure(value) == text


def test_categories_are_means_over_their_pairs() -> None:
    rows = [
        {"category": "position", "values": {"m": 1.0}},
        {"category": "position", "values": {"m": 2.0}},
        {"category": "style", "values": {"m": 5.0, "n": 1.0}},
    ]
    found = {(row["category"], row["metric"]): row["value"] for row in category_rows(EvaluationResult({}, rows))}
    assert found == {("position", "m"): 1.5, ("style", "m"): 5.0, ("style", "n"): 1.0}


# leakage


def layout(subject: np.ndarray, **named: np.ndarray) -> Layout:
    segments = [Segment(mask, name) for name, mask in named.items()] + [Segment(subject, "object")]
    return Layout(segments, subject, subject)


def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, subject = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    left[:, :4] = True
    subject[2:6, 2:6] = True
    return left & ~subject, ~left & ~subject, subject


def test_leakage_by_area_counts_the_background_alone() -> None:
    left, right, subject = halves()
    whole = left | right
    references = [layout(subject, brick=whole), layout(subject, brick=left, snow=right)]
    assert leakage.common_background(references) == "brick", "three of four halves"
    assert leakage.common_background([layout(subject, brick=left, snow=right)]) is None
    assert leakage.common_background([Layout([Segment(whole)], subject, subject)]) is None, "nothing is named"
    shares = leakage.background_share([*references, layout(subject, snow=whole), layout(subject)], "brick")
    np.testing.assert_allclose(shares, [1, 0.5, 0, np.nan])


def test_the_subject_is_no_background_even_where_the_segmenter_has_a_name_for_it() -> None:
    left, right, subject = halves()
    named = Layout([Segment(left | right, "street"), Segment(subject, "dog")], subject, subject)
    assert dict(leakage.background_areas(named)) == {"street": 48}
    covered = Layout([Segment(subject, "dog")], subject, subject)
    assert np.isnan(leakage.background_share([covered], "street")).all()


def test_leakage_asks_only_where_another_background_was_asked_for() -> None:
    prompts = [
        Prompt(0, "a", "", "", True, {"background": "snow"}),
        Prompt(1, "a", "", "", True, {"background": "brick"}),
        Prompt(2, "a", "", "", True, {}),
        Prompt(3, "a", "", "", False, {"background": "snow"}),
    ]
    assert leakage.asks_for_another(prompts, "brick").tolist() == [True, False, False, False]
    assert leakage.asks_for_another(prompts, None).tolist() == [True, True, True, False]


class MeanColour:
    """An encoder whose feature is the mean colour of a picture."""

    info: dict[str, Any] = {}  # noqa: RUF012

    def encode_images(self, pictures: Any) -> Features:
        import torch

        return unit(torch.tensor(np.stack([picture.reshape(-1, 3).mean(axis=0) for picture in pictures])))


def test_likeness_of_backgrounds_does_not_see_the_subject() -> None:
    left, right, subject = halves()
    seen = layout(subject, brick=left | right)

    def picture(background: tuple[int, int, int], thing: tuple[int, int, int]) -> np.ndarray:
        result = np.zeros((8, 8, 3), dtype=np.uint8)
        result[:], result[subject] = background, thing
        return result

    red, blue = (200, 10, 10), (10, 10, 200)
    references = [picture(red, (255, 255, 255))]
    pictures = [picture(red, (0, 0, 0)), picture(blue, (255, 255, 255))]
    found = leakage.background_similarity(MeanColour(), pictures, [seen, seen], references, [seen])
    assert found[0] == pytest.approx(1), "the reference's background, another thing"
    assert found[1] < 0.9
    assert np.array_equal(leakage.paint_over(references[0], np.zeros((8, 8), dtype=bool)), references[0])


def test_leakage_is_told_beyond_what_the_original_model_draws() -> None:
    table = leakage.leakage_table(cells().query("kind == 'instance'")).set_index("method")
    assert table.loc["lora", "preservation/background_leakage"] == pytest.approx(0.5)
    assert table.loc["lora", "preservation/background_leakage/excess"] == pytest.approx(0.4)
    assert table.loc["purecc <new>", "preservation/background_leakage/excess"] == pytest.approx(0)


def test_a_sheet_is_a_picture(tmp_path: Path) -> None:
    picture = np.full((8, 8, 3), 7, dtype=np.uint8)
    sheet = compose([picture], {"a": [picture, picture], "b": [picture, picture]}, ["one", "two"])
    assert isinstance(sheet, Image.Image)
    assert np.asarray(sheet)[30, 10].tolist() == [7, 7, 7]
