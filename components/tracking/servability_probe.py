"""Run by path in a fresh, isolated process, which is asked on its standard input. See `servability`.

    python -I servability_probe.py REQUIREMENTS < QUESTION

Knows nothing of the project: what it imports of it is the code that travels with the model.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

_SLOW = ("mlflow.pyfunc", "pandas", "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "peft")
"""What takes seconds to import, done while the question is still to come."""


class Only:
    """Stands before a finder of modules and lets it find only what the model's requirements bring."""

    def __init__(self, finder: Any, allowed: set[str]):
        self._finder, self._allowed = finder, allowed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in self._allowed or not hasattr(self._finder, "find_spec"):
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def restrict(requirements: list[str], helper: Path) -> None:
    """Make everything else not installed, for this process: as in an environment of these requirements alone."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("servability_helper", helper)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    allowed = module.importable(requirements) | set(sys.stdlib_module_names) | {"components", "pyfunc_model"}
    sysconfig.get_config_vars()  # of a module of the standard library that its list of names lacks
    sys.meta_path[:] = [Only(finder, allowed) if _looks_around(finder) else finder for finder in sys.meta_path]


def _looks_around(finder: Any) -> bool:
    return getattr(finder, "__name__", type(finder).__name__) not in ("BuiltinImporter", "FrozenImporter")


def try_model(question: dict[str, str], requirements: list[str]) -> dict[str, Any]:
    """What came of it, or the `requirements` that the model states, if this process has others."""
    import mlflow

    mlflow.set_tracking_uri(question["uri"])
    mlflow.set_registry_uri(question["uri"])
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=question["source"], dst_path="model"))
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    stated = [line.strip() for line in lines if line.strip()]
    if sorted(stated) != sorted(requirements):
        return {"requirements": stated}
    import pandas as pd

    model = mlflow.pyfunc.load_model(question["source"])
    from components.serving.recording import difference, picture, read_recording

    recording = read_recording(folder / "artifacts" / "recording")
    answer = model.predict(pd.DataFrame([recording.request.model_dump()]))
    drawn = picture(answer["png"][0])
    service = model.unwrap_python_model().service
    base = picture(service.draw(recording.request, original=True, adapter=question["concept"]).png)
    mean, largest = difference(drawn, recording.picture)
    return {"difference": mean, "largest_difference": largest, "effect": difference(drawn, base)[0]}


def main() -> None:
    requirements = json.loads(sys.argv[1])
    restrict(requirements, Path(__file__).with_name("installed.py"))
    for name in _SLOW:
        with contextlib.suppress(ImportError):  # whether the model needs it, is the model's to say
            importlib.import_module(name)
    asked = sys.stdin.read()
    if not asked:  # whoever would have asked has ended
        return
    question = json.loads(asked)
    try:
        found = try_model(question, requirements)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is why the model cannot be served)
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    Path(question["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 20)  # what is imported stays: to look it through again and again takes seconds
    main()
    gc.freeze()
