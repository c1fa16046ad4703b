"""What a benchmark has measured, and the part of it that a report is made from."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from PIL import Image

from components.benchmark import outcome
from components.benchmark.plan import Plan
from components.evaluation.cells import read_cells, write_cells


def test_a_report_shows_the_cells_of_its_plan_and_the_tables_keep_all(tmp_path: Path) -> None:
    rows = [
        {"method": method, "concept": concept, "kind": "instance", "seed": seed, "step": 10, "scale": 1.0, "key": "k",
         "fidelity/recognised_probability": 0.25 + 0.5 * seed, "preservation/prior_distance": 0.01}
        for method in ("lora", "purecc", "dop") for concept in ("star", "heart") for seed in (0, 1)
    ]  # fmt: skip
    write_cells(pd.DataFrame(rows), tmp_path / outcome.CELLS)
    categories = pd.DataFrame([{**row, "category": "style", "metric": "fidelity/recognised_probability",
                                "value": row["fidelity/recognised_probability"]} for row in rows])  # fmt: skip
    categories.to_csv(tmp_path / outcome.CATEGORY_TABLE, index=False)
    plan = Plan(concepts=["star", "heart"], seeds=[0, 1], steps=[10], variants={"lora": {}, "purecc": {}, "dop": {}})

    files = outcome.write_report(tmp_path, plan.only(variants=["lora", "dop"], seeds=[0]), {})

    text = files["markdown"].read_text()
    assert "2 methods on 2 concepts: 4 measured points" in text
    assert "purecc" not in text
    of_categories = text.partition("## Categories of prompts")[2]
    shown = re.findall(r"^\| (lora|dop) \| ([\d.]+) \|$", of_categories, flags=re.MULTILINE)
    assert shown == [("lora", "0.25"), ("dop", "0.25")], "of seed 0 alone"
    assert files["cells"] == tmp_path / outcome.CELLS
    assert len(read_cells(files["cells"])) == len(rows)
    assert len(pd.read_csv(tmp_path / outcome.CATEGORY_TABLE)) == len(rows)


def test_the_markdown_shows_the_sheets_of_its_folder_and_copies_none(tmp_path: Path) -> None:
    rows = [{"method": "lora", "concept": "star", "kind": "instance", "seed": 0, "step": 10, "scale": 1.0, "key": "k",
             "fidelity/recognised_probability": 0.5, "preservation/prior_distance": 0.01}]  # fmt: skip
    write_cells(pd.DataFrame(rows), tmp_path / outcome.CELLS)
    (tmp_path / outcome.SHEETS).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / outcome.SHEETS / "star.png")
    plan = Plan(concepts=["star"], seeds=[0], steps=[10], variants={"lora": {}})

    files = outcome.write_report(tmp_path, plan, {})

    assert "![star](sheets/star.png)" in files["markdown"].read_text()
    assert not list((tmp_path / "benchmark").glob("*.png"))
