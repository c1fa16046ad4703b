"""The report, opened in a real browser: complete, quiet, closed to what its data would smuggle in, and legible."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.concepts.concept import Concept, Reference
from components.concepts.texts import derive_texts
from components.evaluation.overlays import match_regions, overlay
from components.evaluation.pictures import to_pictures, write_png
from components.evaluation.report import write_report
from components.evaluation.result import EvaluationResult
from components.evaluation.segmentation import paint, seg_cons
from components.world.render import render
from components.world.scene import Scene, place
from components.world.vocabulary import HELD_OUT_LOOKS, solid

pytestmark = pytest.mark.browser

PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


def browse(chromium: str, url: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--virtual-time-budget=3000", *flags, url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture
def requests_seen() -> Iterator[tuple[str, list[str]]]:
    """A local address, and the paths that anyone asked it for."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()


def make_result(folder: Path, prompt_suffix: str = "") -> EvaluationResult:
    """Pairs of world scenes: the 'customized model' draws the look and moves things a little."""
    rng = np.random.default_rng(0)
    rows = []
    for index, (background, position) in enumerate(
        (b, p) for b in ("snow", "grass", "wood", "water") for p in ("left", "top", "bottom")
    ):
        with_concept = index < 9
        star = place("star", solid("red"), "red", position, "big", rng)
        phase = (0.2, 0.7)
        looks = HELD_OUT_LOOKS["striped"] if with_concept else solid("red")
        moved = place("star", looks, None, position, "big", np.random.default_rng(index))
        drawn = render([Scene(background, (star,), phase=phase), Scene(background, (moved,), phase=phase)])
        pictures = dict(zip(("original", "custom"), to_pictures(drawn.images_BCHW), strict=True))
        partitions = {}
        for which, masks_NHW in zip(pictures, drawn.masks_BNHW, strict=True):
            thing = masks_NHW[0].numpy() > 0.5
            partitions[which] = paint([thing, ~thing], thing.shape)
        name = f"{index:04d}-0.png"
        custom = match_regions(partitions["custom"], partitions["original"])
        for which, regions in (("original", partitions["original"]), ("custom", custom)):
            write_png(folder / "images" / which / name, pictures[which])
            write_png(folder / "masks" / which / name, overlay(pictures[which], regions))
        text = f"star {PLACES[position]}, {background} background{prompt_suffix}"
        kept = seg_cons(partitions["original"], partitions["custom"])
        rows.append(
            {
                "category": ("background" if index < 5 else "company") if with_concept else "without the concept",
                "complete": f"a [V] {text}" if with_concept else f"a {text}",
                "base": f"a {text}",
                "has_concept": with_concept,
                "expect": {},
                "repetition": 0,
                "seed": 1000 + index,
                "images": {which: f"images/{which}/{name}" for which in pictures},
                "masks": {which: f"masks/{which}/{name}" for which in pictures},
                "values": {"preservation/seg_cons": kept, "fidelity/dino": 0.61, "preservation/clip_t_delta": -0.4}
                if with_concept
                else {"preservation/prior_seg_cons": kept, "preservation/prior_distance": 0.031},
            }
        )
    references = []
    for index in range(4):
        item = place("star", HELD_OUT_LOOKS["striped"], None, list(PLACES)[index], "big", rng)
        picture = to_pictures(render([Scene("brick", (item,))]).images_BCHW)[0]
        write_png(folder / f"references/{index:02d}.png", picture)
        references.append(f"references/{index:02d}.png")
    metrics = {
        "fidelity/dino": 0.6123, "fidelity/dino_original": 0.31, "fidelity/dino_references": 0.87,
        "fidelity/dino_masked": 0.702, "fidelity/dino_masked_original": 0.28, "fidelity/dino_masked_references": 0.91,
        "fidelity/clip_i": 0.81, "fidelity/clip_i_original": 0.66, "fidelity/clip_i_references": 0.95,
        "preservation/seg_cons": 78.4, "preservation/seg_cons_floor": 41.2, "preservation/clip_t_delta": -0.31,
        "preservation/seg_cons_background": 88.1, "preservation/seg_cons_background_floor": 61.0,
        "preservation/accuracy": 0.91, "preservation/accuracy_original": 0.95, "preservation/accuracy_delta": -0.04,
        "preservation/accuracy_delta/background": -0.01, "preservation/accuracy_delta/shape": -0.09,
        "preservation/background_leakage": 0.03, "preservation/background_leakage_original": 0.0,
        "preservation/kl": 4.2, "preservation/kl_floor": 3.1,
        "preservation/prior_distance": 0.031, "preservation/prior_distance_floor": 0.142,
    }  # fmt: skip
    spread = {key: {"seeds": None, "prompts": 0.012} for key in ("fidelity/dino", "preservation/clip_t_delta")}
    evaluators = {"dino": {"id": "infra/models/dino", "weights_sha256": "ab" * 32, "preprocessing": {"size": 64}}}
    return EvaluationResult(metrics, rows, spread, references, evaluators, {}, folder)


def make_concept(name: str, reference_text: str) -> Concept:
    texts = derive_texts("a [V] star on the left, brick background", kind="instance", class_word="star")
    references = tuple(Reference(Path(f"{index}.png"), reference_text, texts) for index in range(4))
    return Concept(name, "instance", "star", "CC0-1.0", "made for a test", Path("nowhere"), references)


def make_history() -> dict[str, list[dict[str, float]]]:
    rng = np.random.default_rng(1)
    extractor = [
        {"step": step, "loss/cc": 0.1 + 0.2 * np.exp(-step / 40) + 0.03 * rng.standard_normal(), "grad_norm": 0.3}
        for step in range(1, 121)
    ]
    pure = []
    for step in range(1, 251):
        centre = 0.45 - 0.2 * np.exp(-step / 60) + 0.02 * rng.standard_normal()
        pure.append(
            {
                "step": step, "loss/cc": 0.11 + 0.05 * abs(rng.standard_normal()), "loss/purecc": 0.002 + 1e-5 * step,
                "lambda_star/mean": centre, "lambda_star/min": centre - 0.1, "lambda_star/max": centre + 0.15,
                "guidance/cosine": 0.5 + 0.0012 * step, "guidance/norm": 3.1,
            }
        )  # fmt: skip
    pure[100]["lambda_star/mean"] = float("nan")
    return {"extractor": extractor, "pure-learning": pure}


GATES = [
    {"metric": "preservation/seg_cons", "value": 78.4, "bound": ">= 70", "passed": True, "champion": 75.1,
     "reason": "preservation/seg_cons = 78.4, satisfies >= 70"},
    {"metric": "preservation/prior_distance", "value": 0.031, "bound": "<= 0.02", "passed": False, "champion": None,
     "reason": "preservation/prior_distance = 0.031, needs <= 0.02"},
]  # fmt: skip
LINEAGE = {"data": "ad0f" * 16, "base model": "17c3" * 16, "profile": "tiny 9b1e", "code": "1c58922"}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_report(
        path,
        concept=make_concept("striped_star", "a [V] star on the left, brick background"),
        result=make_result(tmp_path / "evaluation"),
        history=make_history(),
        gates=GATES,
        lineage=LINEAGE,
    )
    return path


def errors_in(console: str) -> list[str]:
    return [line for line in console.splitlines() if "CONSOLE" in line]


def test_the_page_is_complete_quiet_and_drawn(chromium: str, report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(chromium, report.as_uri(), tmp_path / "chrome", "--window-size=1200,1600", f"--screenshot={shot}")
    seen = browse(chromium, report.as_uri(), tmp_path / "chrome", "--dump-dom")
    assert not errors_in(seen.stderr)
    for anchor in ("summary", "references", "pairs", "gates", "metrics", "training", "lineage"):
        assert f'id="{anchor}"' in seen.stdout
    assert "Refused: 1 of 2 gates failed" in seen.stdout
    assert seen.stdout.count("<polyline") >= 8
    assert seen.stdout.count('class="card pair"') == 12
    assert report.stat().st_size < 10_000_000
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] == 1200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # photographs are drawn, not an error page


def test_a_console_error_would_be_noticed(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "control.html"
    page.write_text("<script>console.error('heard')</script>")
    assert errors_in(browse(chromium, page.as_uri(), tmp_path / "chrome", "--dump-dom").stderr)


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def test_nothing_in_the_data_becomes_markup_or_a_request(
    chromium: str, tmp_path: Path, requests_seen: tuple[str, list[str]]
) -> None:
    address, asked = requests_seen
    control = tmp_path / "control.html"
    control.write_text(f'<img src="{address}/control">')
    browse(chromium, control.as_uri(), tmp_path / "chrome", "--dump-dom")
    assert "/control" in asked

    evil = f'"><img src={address}/x onerror="fetch(1)"><script src={address}/s></script>{{{{ 7*7 }}}}</style>'
    history = {evil: [{"step": 1, "loss/cc": 1.0}, {"step": 2, "loss/cc": 0.5}]}
    gate = {**GATES[1], "metric": evil, "bound": evil, "reason": evil}
    result = make_result(tmp_path / "evaluation", prompt_suffix=evil)
    result.rows[0]["category"] = evil
    result.metrics[evil] = 1.0
    result.evaluators = {evil: {evil: evil}}
    path = tmp_path / "evil.html"
    write_report(
        path, concept=make_concept(evil, evil), result=result, history=history, gates=[gate], lineage={evil: evil}
    )
    seen = browse(chromium, path.as_uri(), tmp_path / "chrome", "--dump-dom")
    assert not errors_in(seen.stderr)
    assert [path for path in asked if path not in ("/control", "/favicon.ico")] == []
    elements = _Elements()
    elements.feed(path.read_text(encoding="utf-8"))
    assert "script" not in elements.tags
    assert elements.handlers == []
    assert elements.tags.count("img") == 12 * 4 + 4
    assert "49" not in elements.tags
    assert "{{ 7*7 }}" in seen.stdout


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_does_not_scroll_sideways(chromium: str, report: Path, tmp_path: Path, width: int) -> None:
    # The page may run no script and a window has a least width: a copy in a frame of that width measures itself.
    content = report.read_text(encoding="utf-8")
    start = content.index("<meta http-equiv")
    policy = content[start : content.index(">", start) + 1]
    assert "default-src 'none'" in policy
    sizes = "root.scrollWidth + ' ' + root.clientWidth + ' ' + innerWidth"
    measure = f"<script>const root = document.documentElement; parent.postMessage({sizes}, '*')</script>"
    copy = content.replace(policy, "").replace("</body>", f"{measure}</body>")
    (tmp_path / "copy.html").write_text(copy, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>onmessage = event => document.title = event.data</script>"
        f'<iframe src="copy.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    seen = browse(chromium, outer.as_uri(), tmp_path / "chrome", "--window-size=1300,1000", "--dump-dom")
    needed, visible, frame = map(int, seen.stdout.split("<title>")[1].split("</title>")[0].split())
    assert frame == width
    assert needed <= visible <= width
