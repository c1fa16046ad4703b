"""One table of what everything costs, every comparison as a ratio of times measured side by side.

    make bench                                        the tiny profile on its shipped models, about half an hour
    make bench BENCH="--miniature"                    everything once, on models made in seconds: does it run?
    make bench BENCH="--only training,sampling --rounds 40"
    make bench BENCH="--profile sd35-medium --base /models/sd35 --only training,memory,sampling"
    make bench BENCH="--document docs/performance.md"  the tables of that document, from this run

Prints the table and writes it, with machine and versions, to `.purecc/bench/<time>.json` (or --out). Times are medians
of processor time on the CPU and of wall-clock on a GPU; the ratio is the median over rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import components.quiet  # noqa: E402, F401  (before every dependency)

PARTS = ("training", "settings", "threads", "memory", "sampling", "onnx", "evaluation", "tracking", "pipeline")
LEAST = 2.0  # seconds that a case lasts in a round
# Settings under which everything runs once in a minute or two.
MINIATURE = [
    "learning.batch_size=2",
    "evaluation.sampling.steps=2",
    "evaluation.sampling.batch_size=2",
]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--base", help="folder of the base; default: the profile's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=64, help="of the evaluation")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--miniature", action="store_true", help="untrained models of the smallest size, two rounds")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--document", type=Path, help="Markdown whose table this run fills")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--of-threads", action="store_true", help=argparse.SUPPRESS)  # likewise
    found = parser.parse_args(given)
    if unknown := sorted(set(found.only.split(",")) - set(PARTS)):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    return found


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Path, str, list[str]]:
    """The project to measure in, the profile's name, and its overrides."""
    if not options.miniature:
        base = [] if options.base is None else [f"base.path={options.base}"]
        return REPOSITORY, options.profile, [*base, *options.overrides]
    import small_project

    from components.world.family import create_untrained

    project = folder / "project"
    if not project.exists():
        create_untrained(folder / "family", size="micro", seed=0)
        project.mkdir()
        small_project.build(project, folder / "family")
    return project, "micro", [*MINIATURE, *options.overrides]


def measure(options: argparse.Namespace, folder: Path, out: Path) -> dict[str, Any]:
    """Measure the wanted parts; what is there of them is written to `out` after each."""
    import torch

    project, name, overrides = prepare(options, folder)
    os.environ["PURECC_HOME"] = str(project)
    import contention
    import drawing
    import economies
    import exported
    import judging
    import pipeline
    import training
    from measuring import Row, machine

    from components.files import write_json
    from components.settings import load_profile

    profile = load_profile(name, overrides)
    wanted, rounds = options.only.split(","), 2 if options.miniature else options.rounds
    few, least = max(2, rounds // 4), 0.0 if options.miniature else LEAST
    pictures = 4 if options.miniature else options.pictures
    work = folder / "work"
    work.mkdir(exist_ok=True)
    if options.memory_of:
        return {"peak_mib": training.memory(work, profile, options.memory_of)}
    if options.of_threads:
        return {"rows": [row.to_json() for row in contention.measure(work, profile, few)]}
    found: list[Row] = []
    facts: dict[str, Any] = {}
    device = training.Bench(work, profile).backbone.device
    for part in wanted:
        print(f"{part} ...", file=sys.stderr, flush=True)
        if part == "training":
            found += training.measure(work, profile, rounds)
        elif part == "settings":
            found += economies.measure(work, profile, rounds, compile_=not options.miniature)
        elif part == "threads":
            said = alone(options, folder, "--of-threads", "--rounds", str(rounds), without=("OMP_NUM_THREADS",))
            found += [Row(**row) for row in said["rows"]]
        elif part == "memory":
            found += memory(options, folder, list(training.cases_of(work, profile)))
        elif part == "sampling":
            found += drawing.measure(work, profile, few, least)
        elif part == "onnx":
            found += exported.measure(work, profile, few, least)
        elif part == "evaluation":
            found += judging.measure(work, profile, few, least, pictures)
        elif part == "tracking":
            step = training.ours(training.Bench(work, profile))[training.PLAIN]
            found += pipeline.tracking(step, few, least, device)
        elif part == "pipeline":
            where = project if options.miniature else pipeline.clone(folder / "clone")
            concept = "spotted_star" if options.miniature else "striped_star"
            found += pipeline.measure(where, concept, name, overrides)
        facts = {
            "machine": machine(device),
            "profile": name,
            "overrides": overrides,
            "miniature": options.miniature,
            "torch_cuda": torch.version.cuda,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rows": [row.to_json() for row in found],
        }
        write_json(out, facts)
    return facts


def memory(options: argparse.Namespace, folder: Path, names: list[str]) -> list[Any]:
    """Peak memory of each training step, each in a process of its own."""
    from measuring import Row

    found = {name: float(alone(options, folder, "--memory-of", name)["peak_mib"]) for name in names}
    plain = next(iter(found))
    return [
        Row("peak memory", name, value, "MiB", against=plain, ratio=value / found[plain], note="beyond imports")
        for name, value in found.items()
    ]


def alone(options: argparse.Namespace, folder: Path, *what: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a process of its own measures; `without` are variables that it does not see."""
    command = [sys.executable, __file__, *what, "--profile", options.profile]
    command += ["--miniature"] if options.miniature else []
    command += ["--base", options.base] if options.base else []
    command += [part for override in options.overrides for part in ("--set", override)]
    kept = {name: value for name, value in os.environ.items() if name not in without}
    environment = {**kept, "BENCH_FOLDER": str(folder)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    options = arguments()
    out = options.out or REPOSITORY / ".purecc" / "bench" / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    with tempfile.TemporaryDirectory(prefix="purecc-bench-") as temporary:
        found = measure(options, Path(os.environ.get("BENCH_FOLDER", temporary)), out)
    if options.memory_of or options.of_threads:
        print(json.dumps(found))
        return
    import tables

    print(tables.bench_table(found["rows"]))
    print(f"written to {out}", file=sys.stderr)
    if options.document:
        tables.write(options.document, found)


if __name__ == "__main__":
    main()
