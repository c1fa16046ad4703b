"""The tables of docs/performance.md, written between its markers from the JSON of the two benchmarks.

python tests/benchmarks/tables.py docs/performance.md bench.json gpu.json     either, or both
python tests/benchmarks/tables.py docs/performance.md                         the GPU's rows as open
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks")]

import gpu_table  # noqa: E402

from components.files import write_text  # noqa: E402

MARKS = ("<!-- {name}: written by tests/benchmarks -->", "<!-- end of {name} -->")
PAIRS = 200  # of the target for the evaluation
PICTURES = 3  # of a pair: customized, original, original from another seed


def fill(document: str, name: str, text: str) -> str:
    """The document with `text` between the markers of that name.

    Raises:
        ValueError: it has not both markers, once each.
    """
    start, end = (mark.format(name=name) for mark in MARKS)
    if document.count(start) != 1 or document.count(end) != 1 or document.index(start) > document.index(end):
        raise ValueError(f"the document needs the lines {start!r} and {end!r}, once each and in this order")
    head, _, rest = document.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}"


def bench_table(rows: list[dict[str, Any]]) -> str:
    """The table, as Markdown."""

    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    lines = ["| | | median | items/s | ratio | quartiles | floor | against |", "|---|---|--:|--:|--:|--:|--:|---|"]
    for row in rows:
        spread = "" if row["low"] is None else f"{row['low']:.2f}-{row['high']:.2f}"
        value = f"{row['value']:.4g} {row['unit']}"
        note = f" ({row['note']})" if row["note"] else ""
        cells = [row["group"], row["name"] + note, value, number(row["per_second"], 1), number(row["ratio"], 3), spread]
        lines.append("| " + " | ".join([*cells, number(row["floor"]), row["against"] or ""]) + " |")
    return "\n".join(lines)


def bench_targets(rows: list[dict[str, Any]]) -> list[tuple[str, str, float | None]]:
    """What was aimed at on a CPU with the tiny profile: what, its bound, what was found (None: not measured)."""
    found = {(row["group"], row["name"]): row for row in rows}

    def field(group: str, name: str, which: str) -> float | None:
        return found[group, name][which] if (group, name) in found else None

    def seconds(name: str) -> float | None:
        return field("pipeline", name, "value")

    script = [row["ratio"] for row in rows if row["group"] == "against the script-style loop"]
    stages = [seconds(f"of it {stage}") for stage in ("extractor", "pure-learning")]
    rate, evaluation = field("pipeline", "pairs of it", "per_second"), None
    if rate is not None and None not in stages:
        evaluation = PAIRS / rate / sum(each for each in stages if each is not None)
    judges = [row["per_second"] for row in rows if row["group"] == "evaluation" and row["name"] != "drawing"]
    judging = None
    if judges and None not in (*judges, *stages):
        judging = sum(PICTURES * PAIRS / each for each in judges) / sum(each for each in stages if each is not None)
    peak = field("pipeline", "peak memory of customize", "value")
    return [
        ("stage-2 step (frozen) / plain LoRA step", "<= 2.6", field("training step", "stage 2, frozen", "ratio")),
        ("script-style stage-2 step / ours", ">= 2", min(script) if script else None),
        ("overhead of customize, s", "<= 15", seconds("of it overhead")),
        ("the same, later than a project's first, s", "<= 15", seconds("overhead of a later customize")),
        ("unchanged customize, s", "<= 8", seconds("unchanged customize")),
        (f"evaluation of {PAIRS} pairs / training", "<= 0.5", evaluation),
        ("of it judging, less drawing / training", "<= 0.5", judging),
        ("peak memory of customize, GiB", "<= 2.5", None if peak is None else peak / 1024),
    ]


def caption(found: dict[str, Any]) -> str:
    """Machine, versions and time in a line or two."""
    told = dict(found["machine"])
    processor, threads, device = told.pop("processor"), told.pop("threads"), told.pop("device")
    where = processor if device == "cpu" else f"{device}, CUDA {found['torch_cuda']}, {processor}"
    versions = ", ".join(f"{name} {version}" for name, version in told.items())
    lines = [f"{where}, {threads} thread{'s' if threads != 1 else ''}; {found['time']}.", f"{versions}."]
    if found["miniature"]:
        lines.insert(0, "**A miniature: it shows that everything runs, its figures mean nothing.**")
    return "\n".join(lines)


def of_bench(found: dict[str, Any]) -> str:
    lines = [caption(found), "", "| target | bound | found |", "|---|--:|--:|"]
    for what, bound, value in bench_targets(found["rows"]):
        lines.append(f"| {what} | {bound} | {'open' if value is None else f'{value:.2f}'} |")
    return "\n".join([*lines, "", bench_table(found["rows"])])


def of_gpu(found: dict[str, Any] | None) -> str:
    if found is None:
        return "Not measured yet: every row is open.\n\n" + gpu_table.show(gpu_table.unmeasured())
    lines = [caption(found), ""]
    lines.append(
        f"{found['parameters']:,} parameters; matrix products at {found['tera_flop_per_second']:.1f} TFLOP/s; "
        f"a step's noise is drawn on the CPU in {found['noise_ms']:.2f} ms."
    )
    return "\n".join([*lines, "", gpu_table.show(found)])


def write(document: Path, *found: dict[str, Any]) -> None:
    """Fill the document from what was measured; a GPU table that is still empty is written as open."""
    text = document.read_text(encoding="utf-8")
    for each in found:
        text = fill(text, "gpu", of_gpu(each)) if "training" in each else fill(text, "bench", of_bench(each))
    start, end = (mark.format(name="gpu") for mark in MARKS)
    if not text.partition(start)[2].partition(end)[0].strip():
        text = fill(text, "gpu", of_gpu(None))
    write_text(document, text)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]), *(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[2:]))


if __name__ == "__main__":
    main()
