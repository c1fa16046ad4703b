"""A consumer in a fresh virtual environment: the model's stated requirements alone, the project absent.

    python scripts/fresh_consumer.py                          # an untrained model, made for this
    python scripts/fresh_consumer.py --name striped_star      # the champion of this project

Makes the environment, installs what the model's requirements.txt states and nothing else, loads the champion by its
alias from another folder, draws the recorded request and compares the picture with the recorded one. Needs a package
index (pip's own settings and cache are used) and some minutes. Prints what it found; exit code 1 if that is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FETCH = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
mlflow.artifacts.download_artifacts(artifact_uri=sys.argv[2] + "/requirements.txt", dst_path=sys.argv[3])
"""
CONSUMER = """
import json, sys
import mlflow, pandas as pd
uri, source, base = sys.argv[1:]
mlflow.set_tracking_uri(uri)
found = {}
for name in ("flows", "prefect", "dvc", "great_expectations"):
    try:
        __import__(name)
        found[name] = "importable"
    except ImportError:
        pass
folder = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path="fetched")
model = mlflow.pyfunc.load_model(source)
from components.serving.recording import difference, picture, read_recording
from pathlib import Path
recording = read_recording(Path(folder) / "artifacts" / "recording")
answer = model.predict(pd.DataFrame([recording.request.model_dump()]))
mean, largest = difference(picture(answer["png"][0]), recording.picture)
import components
print(json.dumps({"mean": mean, "largest": largest, "not_required": found, "code": components.__file__,
                  "facts": json.loads(answer["facts"][0])}))
"""


def make_project(root: Path) -> str:
    """A project with an untrained model and a champion; gives the concept's name."""
    import torch

    from components.backbones.sd3 import SD3Backbone
    from components.files import atomic_folder
    from components.serving.recording import write_recording
    from components.serving.requests import ImageRequest
    from components.serving.service import ImageService
    from components.settings import BaseSettings, Gate, LoraSettings, SamplingSettings
    from components.tracking import promotion, registry, runs
    from components.tracking.gates import judge
    from components.tracking.store import open_store
    from components.world.family import create_untrained

    create_untrained(root / "base", size="micro", seed=0)
    settings = BaseSettings(
        path=str(root / "base"), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks"
    )
    backbone = SD3Backbone.load(settings)
    values = torch.randn(backbone.adapted.embedding_shape, generator=torch.Generator().manual_seed(0))
    backbone.create_adapter("star", concept="star", lora=LoraSettings(rank=2, alpha=2.0), embeddings_NRD=values)
    for key, value in backbone.parameters("star")["lora"].items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(1))
    with atomic_folder(root / "adapter") as partial:
        backbone.save_adapter("star", partial)
    backbone.remove_adapter("star")
    sampling = SamplingSettings(steps=4, guidance_scale=4.0)
    service = ImageService(backbone, sampling)
    service.add("star", root / "adapter")
    request = ImageRequest(prompt="a <star> star on the left", seed=3)
    (root / "image.png").write_bytes(service.draw(request).png)
    recording = write_recording(root / "recording", request, root / "image.png")
    store = open_store(root)
    base = {
        "settings": settings.model_dump(mode="json"),
        "fingerprint": backbone.fingerprint,
        "sampling": sampling.model_dump(mode="json"),
    }
    with runs.run(store, "star", "customize") as tracker:
        version = registry.register(
            store, "star", root / "adapter", run_id=tracker.run_id, base=base, tags={}, recording=recording
        )
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.0)})
    promotion.record_judgement(store, "star", version.number, report, key="k", against=None)
    promotion.promote(store, "star", version.number)
    return "star"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="a concept of this project; default: an untrained model, made for this")
    arguments = parser.parse_args()
    from components.settings import project_root
    from components.tracking import registry
    from components.tracking.store import open_store

    with tempfile.TemporaryDirectory(prefix="purecc-consumer-") as temporary:
        folder = Path(temporary)
        root = project_root() if arguments.name else folder / "project"
        root.mkdir(exist_ok=True)
        name = arguments.name or make_project(root)
        store = open_store(root)
        champion = registry.by_alias(store, name)
        if champion is None:
            print(f"{name} has no champion", file=sys.stderr)
            return 1
        source = f"models:/{registry.model_name(name)}@champion"
        model = folder / "requirements"
        with_model = [
            sys.executable,
            "-c",
            FETCH,
            store.uri,
            f"models:/{registry.model_name(name)}/{champion.number}",
            str(model),
        ]
        model.mkdir()
        subprocess.run(with_model, check=True)
        began = time.monotonic()
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PURECC_", "PYTHON", "MLFLOW_"))
        }
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        install = [python, "-m", "pip", "install", "-q", "-r", str(model / "requirements.txt")]
        subprocess.run(install, check=True, env=environment, cwd=folder)
        installed = time.monotonic() - began
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run(
            [python, "-c", CONSUMER, store.uri, source, str(root)],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print(done.stderr[-4000:], file=sys.stderr)
            return 1
        found = json.loads(done.stdout.strip().splitlines()[-1])
        found["install_seconds"] = round(installed)
        print(json.dumps(found, indent=2))
        right = (
            found["mean"] < 0.5
            and not found["not_required"]
            and not Path(found["code"]).is_relative_to(Path(__file__).resolve().parents[1] / "components")
        )
        return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
