"""The same prompts and seeds through every way to load an adapter: pictures side by side and their differences.

    python scripts/consumer_pictures.py --adapter FOLDER [--class-word star] [--out docs/consumers]

FOLDER is an adapter folder of the tiny profile, such as `.purecc/artifacts/pure-learning/KEY/adapter`. It is registered
in a temporary project and then drawn with: by torch here, by the folder that `purecc export --format diffusers` writes
(with its loader; and by its LoRA alone, in diffusers and in peft), by the MLflow model in this process and over HTTP
(`mlflow models serve`), and by ONNX Runtime. Writes `pictures.png` and `differences.json`.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import components.quiet  # noqa: F401  (before every dependency)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from components.backbones import adapter_folder, sampling
from components.backbones.sd3 import SD3Backbone
from components.export.diffusers_folder import export_diffusers
from components.export.onnx_folder import export_onnx
from components.export.onnx_sampler import OnnxSampler
from components.serving.recording import difference, picture
from components.serving.requests import ImageRequest
from components.serving.service import ImageService
from components.settings import load_profile, project_root
from components.tracking import promotion, registry, runs
from components.tracking.gates import judge
from components.tracking.store import open_store

Pictures = list[np.ndarray]
TEMPLATES = (
    "a <{name}> {word} on the left, snow background",
    "a <{name}> {word} on the right, grass background",
    "a <{name}> {word} in the middle, brick background",
    "a red circle on the left, snow background",
)


def pixels(images_BCHW: np.ndarray) -> Pictures:
    scaled = np.clip(np.round((images_BCHW + 1) * 127.5), 0, 255).astype(np.uint8)
    return list(scaled.transpose(0, 2, 3, 1))


def by_diffusers(folder: Path, base: Path, prompts: list[str], profile: Any, shape: Any, way: str) -> Pictures:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    name = adapter_folder.read_identity(folder)["concept"]
    placeholder = profile.base.placeholder
    texts = [prompt.replace(f"<{name}>", placeholder) for prompt in prompts]
    if way == "loader":
        spec = importlib.util.spec_from_file_location("load_concept", folder / "load_concept.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.load_concept(pipe, folder)
        texts = prompts
    elif way == "diffusers":
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    elif way == "peft":
        from peft import PeftModel

        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, folder)
    pictures: Pictures = []
    for seed, text in enumerate(texts):
        image = pipe(
            text,
            latents=sampling.noise([seed], shape),
            num_inference_steps=profile.evaluation.sampling.steps,
            guidance_scale=profile.evaluation.sampling.guidance_scale,
            height=profile.base.resolution,
            width=profile.base.resolution,
            max_sequence_length=profile.base.max_sequence_length,
            output_type="pt",
        ).images
        pictures += pixels(image.numpy() * 2 - 1)
    return pictures


def by_http(uri: str, source: str, base: Path, folder: Path, frame: pd.DataFrame) -> Pictures:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PURECC_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment |= {"MLFLOW_TRACKING_URI": uri, "PURECC_BASE": str(base), "PATH": path}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", source, "--env-manager", "local"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        body = json.dumps({"dataframe_records": frame.to_dict("records")}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            rows = json.load(answer)["predictions"]
        return [picture(base64.b64decode(row["png"])) for row in rows]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sheet(columns: dict[str, Pictures], file: Path, scale: int = 2) -> None:
    """All pictures, a column for each way."""
    side, count = next(iter(columns.values()))[0].shape[0] * scale, len(next(iter(columns.values())))
    image = Image.new("RGB", (len(columns) * (side + 6), count * (side + 6) + 18), "white")
    draw = ImageDraw.Draw(image)
    for column, (title, pictures) in enumerate(columns.items()):
        draw.text((column * (side + 6) + 2, 2), title, fill="black")
        for row, each in enumerate(pictures):
            tile = Image.fromarray(each).resize((side, side), Image.Resampling.NEAREST)
            image.paste(tile, (column * (side + 6), row * (side + 6) + 18))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--class-word", default="star")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs/consumers"))
    arguments = parser.parse_args()
    steps = [f"evaluation.sampling.steps={arguments.steps}"] if arguments.steps else []
    profile = load_profile(arguments.profile, steps)
    base_folder = (project_root() / profile.base.path).resolve()
    name = adapter_folder.read_identity(arguments.adapter)["concept"]
    prompts = [text.format(name=name, word=arguments.class_word) for text in TEMPLATES]
    requests = [ImageRequest(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    backbone = SD3Backbone.load(profile.base)
    service = ImageService(backbone, profile.evaluation.sampling)
    service.add(name, arguments.adapter)
    base = {
        "settings": profile.base.model_dump(mode="json"),
        "fingerprint": backbone.fingerprint,
        "sampling": profile.evaluation.sampling.model_dump(mode="json"),
    }
    columns: dict[str, Pictures] = {}
    seconds: dict[str, float] = {}

    def add(title: str, draw: Callable[[], Pictures]) -> None:
        began = time.monotonic()
        columns[title] = draw()
        seconds[title] = round(time.monotonic() - began, 1)
        print(f"{title}: {seconds[title]} s", file=sys.stderr)

    add("torch", lambda: [picture(service.draw(each, adapter=name).png) for each in requests])
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        folder = Path(temporary)
        exported = export_diffusers(arguments.adapter, folder / "diffusers", base, class_word=arguments.class_word)
        shape = backbone.latent_shape

        def diffusers(way: str) -> Callable[[], Pictures]:
            return lambda: by_diffusers(exported, base_folder, prompts, profile, shape, way)

        add("diffusers", diffusers("loader"))
        onnx = export_onnx(backbone, name, folder / "onnx", base["sampling"])
        ort = OnnxSampler(onnx)
        add("ONNX Runtime", lambda: [pixels(ort.sample([p], [s]))[0] for s, p in enumerate(prompts)])
        store = open_store(folder / "project")
        with runs.run(store, name, "customize") as tracker:
            version = registry.register(store, name, arguments.adapter, run_id=tracker.run_id, base=base, tags={})
        report = judge({}, {})
        promotion.record_judgement(store, name, version.number, report, key="k", against=None)
        promotion.promote(store, name, version.number)
        import mlflow

        os.environ["PURECC_BASE"] = str(base_folder)
        source = f"models:/{registry.model_name(name)}@champion"
        frame = pd.DataFrame([each.model_dump(exclude_none=True) for each in requests])
        store.activate()
        model = mlflow.pyfunc.load_model(source)
        add("pyfunc", lambda: [picture(png) for png in model.predict(frame)["png"]])
        add("HTTP", lambda: by_http(store.uri, source, base_folder, folder, frame))
        add("LoRA alone", diffusers("diffusers"))
        add("LoRA alone (peft)", diffusers("peft"))
        add("base", lambda: [picture(service.draw(each, original=True).png) for each in requests])
        providers = ort.providers
    truth = columns["torch"]
    table = {
        title: {
            "mean": round(float(np.mean([difference(a, b)[0] for a, b in zip(truth, pictures)])), 4),
            "largest": max(difference(a, b)[1] for a, b in zip(truth, pictures)),
            "seconds": seconds[title],
        }
        for title, pictures in columns.items()
    }
    sheet(columns, arguments.out / "pictures.png")
    facts = {"prompts": prompts, "providers": providers, "differences": table}
    (arguments.out / "differences.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
