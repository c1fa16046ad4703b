"""How cost grows, and what saturates first: the tables and the plot of docs/scaling.md.

    python tests/benchmarks/scaling.py            writes docs/scaling.md's tables and docs/scaling/utilisation.png

Every number comes from docs/scaling/constants.yaml, which says where it is from; the rest is arithmetic and the
simulation in `queueing`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "benchmarks")]

import numpy as np  # noqa: E402
import sd35  # noqa: E402
import tables  # noqa: E402
import yaml  # noqa: E402
from queueing import Outcome, Visit, simulate  # noqa: E402

from components.backbones.flops import tokens_of, work_of  # noqa: E402
from components.files import atomic_file, write_text  # noqa: E402

DOCUMENT = REPOSITORY / "docs" / "scaling.md"
CONSTANTS = REPOSITORY / "docs" / "scaling" / "constants.yaml"
PLOT = REPOSITORY / "docs" / "scaling" / "utilisation.png"
WEEK = 7 * 24 * 3600.0
LOADS = (10, 100, 1_000, 10_000)
TARGET_UTILISATION = 0.7
WORKERS, TRACKING, STORE = "workers", "tracking", "artifacts"


@dataclass(frozen=True)
class Site:
    """What a deployment consists of.

    Attributes:
        tracking: name of the constant: seconds of tracking per concept.
        processes: of the tracking server.
    """

    name: str
    workers: int
    tracking: str
    processes: int = 1


def read(file: Path = CONSTANTS) -> dict[str, float]:
    """Name -> value.

    Raises:
        ValueError: a constant does not say where it is from.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, entry in content.items():
        if not {"value", "unit", "source", "how"} <= set(entry):
            raise ValueError(f"{file.name}: {name} states no value, unit, source or how")
    return {name: float(entry["value"]) for name, entry in content.items()}


def route(constants: Mapping[str, float], site: Site) -> list[Visit]:
    """One concept's way: start, training, its tracking, evaluation, its artifacts."""
    return [
        Visit(None, constants["flow_run"] + constants["start"]),
        Visit(None, constants["training"]),
        Visit(TRACKING, constants[site.tracking]),
        Visit(None, constants["evaluation_picture"] * constants["evaluation_pictures"]),
        Visit(STORE, constants["artifacts"] / constants["artifact_rate"]),
    ]


def capacity(constants: Mapping[str, float], site: Site) -> dict[str, float]:
    """Resource -> concepts a week that it could do if it never waited: places / demand (the utilisation law)."""
    visits = route(constants, site)
    demand = {name: sum(visit.seconds for visit in visits if visit.resource == name) for name in (TRACKING, STORE)}
    demand[WORKERS] = sum(visit.seconds for visit in visits)  # held throughout
    places = {WORKERS: site.workers, TRACKING: site.processes, STORE: 1}
    return {name: places[name] * WEEK / demand[name] for name in places}


def workers_for(constants: Mapping[str, float], load: int, tracking: str) -> int:
    """Workers that a load needs below the target utilisation."""
    one = capacity(constants, Site("", 1, tracking))[WORKERS]
    return max(1, math.ceil(load / (TARGET_UTILISATION * one)))


def week(constants: Mapping[str, float], site: Site, load: int, *, burst: bool) -> Outcome:
    """A week's concepts, all on Monday at once or at random times."""
    arrivals = [0.0] * load if burst else sorted(np.random.default_rng(load).uniform(0, WEEK, load).tolist())
    places = {WORKERS: site.workers, TRACKING: site.processes, STORE: 1}
    return simulate(arrivals, route(constants, site), places, held=WORKERS)


def sites(constants: Mapping[str, float], load: int) -> list[Site]:
    """The embedded default, and a team's servers with as many workers as the load needs."""
    return [
        Site("embedded", 1, "tracking_embedded"),
        Site("servers", workers_for(constants, load, "tracking_http_server"), "tracking_http_server"),
    ]


def duration(seconds: float) -> str:
    for unit, length in (("weeks", WEEK), ("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit == "h" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(amount: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if amount >= length:
            return f"{amount / length:.1f} {unit}"
    return f"{amount / 1e3:.1f} kB"


def load_table(constants: Mapping[str, float]) -> str:
    lines = ["| concepts a week | site | workers | weekly burst done in | spread over the week: 95 % done within |"]
    lines[0] += " workers busy | tracking busy | artifacts busy | first to saturate |"
    lines.append("|--:|---|--:|--:|--:|--:|--:|--:|---|")
    for load in LOADS:
        for site in sites(constants, load):
            first = min(capacity(constants, site).items(), key=lambda pair: pair[1])
            burst, spread = (week(constants, site, load, burst=each) for each in (True, False))
            busy = [f"{100 * load / limit:.3g} %" for limit in _ordered(capacity(constants, site))]
            late = duration(float(np.quantile(spread.times, 0.95)))
            fits = "" if load <= first[1] else ", **too slow**"
            cells = [f"{load:,}", site.name, str(site.workers), duration(burst.end), late, *busy]
            lines.append("| " + " | ".join([*cells, f"{first[0]} at {first[1]:,.0f} a week{fits}"]) + " |")
    return "\n".join(lines)


def _ordered(limits: Mapping[str, float]) -> list[float]:
    return [limits[name] for name in (WORKERS, TRACKING, STORE)]


def growth_table(constants: Mapping[str, float]) -> str:
    """What grows with the number of concepts and of versions."""
    lines = [
        "| concepts | plan of all, no versions yet | plan, 52 versions each | artifacts a year | tracking rows a year |"
    ]
    lines.append("|--:|--:|--:|--:|--:|")
    for load in LOADS:
        fresh = load * constants["plan"]
        searched = constants["registry_search"] + 52 * constants["registry_search_per_version"]
        rows = load * 52 * constants["metric_rows"]
        cells = [f"{load:,}", duration(fresh), duration(fresh + load * searched)]
        lines.append("| " + " | ".join([*cells, size(load * 52 * constants["artifacts"]), f"{rows:.2g}"]) + " |")
    return "\n".join(lines)


def resolution_table() -> str:
    """Operations of a stage-2 step of SD 3.5 Medium by resolution, counted."""
    config = SimpleNamespace(**sd35.TRANSFORMER)
    lines = ["| px | image tokens | TFLOP of a stage-2 step (frozen), one sample | to 1024 px | of it attention |"]
    lines.append("|--:|--:|--:|--:|--:|")
    found = {}
    for side in (512, 768, 1024, 1536):
        tokens, context = tokens_of(config, side // 8, side // 8), sd35.CLIP_ROWS + sd35.T5_ROWS
        base = work_of(config, image_tokens=tokens, context_tokens=context)
        lora = work_of(config, image_tokens=tokens, context_tokens=context, rank=4, embeddings=True)
        width, passes = config.num_attention_heads * config.attention_head_dim, 4 + 2  # forward 4, backward twice one
        attention = 4 * width * (config.num_layers * (tokens + context) ** 2)
        attention += 4 * width * len(config.dual_attention_layers) * tokens**2
        found[side] = (tokens, base.forward + 2 * lora.forward + lora.step, passes * attention)
    for side, (tokens, total, attention) in found.items():
        cells = [str(side), f"{tokens:,}", f"{total / 1e12:.1f}", f"{total / found[1024][1]:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{100 * attention / total:.0f} %"]) + " |")
    return "\n".join(lines)


def constants_table(content: Mapping[str, Any]) -> str:
    lines = ["| constant | value | source | how |", "|---|--:|---|---|"]
    for name, entry in content.items():
        lines.append(f"| `{name}` | {entry['value']:g} {entry['unit']} | {entry['source']} | {entry['how']} |")
    return "\n".join(lines)


def plot(constants: Mapping[str, float], file: Path) -> None:
    """Utilisation of each resource against the load, on one worker and the embedded store, and on servers."""
    from matplotlib.figure import Figure

    loads = np.logspace(0, 4, 50)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, site, title in zip(
        figure.subplots(1, 2, sharey=True),
        (Site("embedded", 1, "tracking_embedded"), Site("servers", 64, "tracking_http_server")),
        ("embedded, one worker", "MLflow server of one process, 64 workers"),
        strict=True,
    ):
        for name, limit in capacity(constants, site).items():
            axes.loglog(loads, loads / limit, label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="concepts a week", ylim=(1e-5, 1e2))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("utilisation")
    figure.axes[0].legend()
    with atomic_file(file) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constants", type=Path, default=CONSTANTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    constants = read(options.constants)
    text = options.document.read_text(encoding="utf-8")
    content = yaml.safe_load(options.constants.read_text(encoding="utf-8"))
    for name, table in (
        ("load", load_table(constants)),
        ("growth", growth_table(constants)),
        ("resolution", resolution_table()),
        ("constants", constants_table(content)),
    ):
        text = tables.fill(text, name, table)
    plot(constants, options.plot)
    write_text(options.document, text)


if __name__ == "__main__":
    main()
