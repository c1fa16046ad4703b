"""The second blessing: a fresh process, with nothing but what the model states that it needs, can serve a version.

It loads the version by its URI, draws the recorded request again, and compares: with the recorded picture, so that what
consumers get is what the gates judged, and with the base's picture of the same prompt, so that an adapter that silently
does nothing is found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.settings import PromotionSettings
from components.tracking import blessings, pyfunc, registry
from components.tracking.registry import RECORDING_DIGEST, Version, model_name
from components.tracking.store import Store

_PROBE = Path(__file__).with_name("servability_probe.py")
_TIMEOUT = 1800.0
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_KEPT_PREFIXES = ("MLFLOW_", "AWS_", "HF_", "CUDA_", "NVIDIA_", "PURECC_BASE", "PURECC_PUBLIC_KEY")


@dataclass(frozen=True)
class Servability:
    """What the fresh process found.

    Attributes:
        passed: it loaded, drew, and the picture is the recorded one and not the base's.
        reason: why not, or how.
        difference, largest_difference: mean and largest difference to the recorded picture, of 255.
        effect: mean difference to the base's picture of the same prompt and seed, of 255.
    """

    passed: bool
    reason: str
    difference: float | None = None
    largest_difference: int | None = None
    effect: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bless(store: Store, concept: str, number: int, settings: PromotionSettings, process: FreshProcess) -> Servability:
    """Let a fresh process try a version, and tag it with the outcome; one that passed before is not tried again.

    Args:
        process: started or not; it has ended afterwards.
    """
    with process:
        version = registry.version(store, concept, number)
        if version.tags.get("servability/status") == "passed" and not blessings.binding_problem(
            version, blessings.SERVABILITY
        ):
            return Servability(**json.loads(version.tags["servability/facts"]))
        found = judge(probe(store, version, process), settings)
    tags = {
        "servability/status": "passed" if found.passed else "refused",
        "servability/facts": json.dumps(found.to_json()),
    }
    if found.passed:
        registry.remove_tag(store, concept, number, "servability/refused")
    else:
        tags["servability/refused"] = found.reason
    bound = blessings.bound(version.tags.get("adapter/digest"), tags, blessings.SERVABILITY)
    registry.set_tags(store, concept, number, bound)
    return found


def judge(found: dict[str, Any], settings: PromotionSettings) -> Servability:
    """Judge what a probe reports."""
    if "error" in found:
        return Servability(False, f"a fresh process cannot serve it: {found['error']}")
    difference, effect = float(found["difference"]), float(found["effect"])
    figures = (difference, int(found["largest_difference"]), effect)
    if not difference <= settings.tolerance:
        reason = f"a fresh process draws another picture: {difference:.3g} of 255 apart, at most {settings.tolerance:g}"
        return Servability(False, reason, *figures)
    if not effect > max(settings.minimum_effect, difference):
        least = max(settings.minimum_effect, difference)
        reason = f"the adapter changes the base's picture by {effect:.3g} of 255, needs more than {least:.3g}"
        return Servability(False, reason, *figures)
    return Servability(True, f"drew the recorded picture ({difference:.3g} of 255 apart)", *figures)


class FreshProcess:
    """A process in which nothing is installed but some requirements, to try a version that states them.

    It may be started early: then it imports what serving takes, and waits. It ends with whoever started it, asked or
    not.

    Args:
        base: where the base model lies on this machine, if it is a folder.
        requirements: as a model states them; None: as a model that is logged here now would.
    """

    def __init__(self, base: Path | None = None, requirements: Sequence[str] | None = None):
        self._base, self._requirements = base, requirements
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # no question comes any more
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, if it does not run; does not wait for it."""
        if self._process is not None:
            return
        kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
        kept |= {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "MLFLOW_DISABLE_TELEMETRY": "true"}
        kept |= {"ORT_DISABLE_TELEMETRY": "1"}
        if self._base is not None:
            kept["PURECC_BASE"] = str(self._base)
        requirements = pyfunc.requirements() if self._requirements is None else list(self._requirements)
        self._folder = tempfile.TemporaryDirectory(prefix="purecc-")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROBE), json.dumps(requirements)],
            cwd=self._folder.name,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """What it answers, and `error` if it does not; it has ended then."""
        self.start()
        assert self._process is not None
        assert self._folder is not None
        answer = Path(self._folder.name) / "answer.json"
        try:
            _, said = self._process.communicate(json.dumps({**question, "answer": str(answer)}), timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return {"error": f"it did not end within {_TIMEOUT:g} s"}
        if answer.is_file():
            found = dict(json.loads(answer.read_text(encoding="utf-8")))
            if "requirements" not in found:
                return found
            with FreshProcess(self._base, found["requirements"]) as another:  # the version was logged elsewhere
                return another.ask(question)
        last = (said.strip().splitlines() or ["it wrote nothing"])[-1]
        return {"error": f"it ended with {self._process.returncode}: {last[:500]}"}


def probe(store: Store, version: Version, process: FreshProcess) -> dict[str, Any]:
    """What the fresh process reports: `difference`, `largest_difference`, `effect`, or `error`."""
    if RECORDING_DIGEST not in version.tags:
        return {"error": "it comes with no recorded picture to compare with"}
    source = f"models:/{model_name(version.concept)}/{version.number}"
    return process.ask({"uri": store.uri, "source": source, "concept": version.concept})
