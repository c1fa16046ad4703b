"""The record of a run over many concepts: an MLflow run that holds plan, results and evidence, beside stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.files import write_json
from components.planning import Decision
from components.provenance import code_version
from components.secrets import redact, redact_values
from components.settings import Profile
from components.tracking import runs
from components.tracking.store import Store
from flows.console import finite, stderr
from flows.locks import open_shared_store
from flows.run_summary import ConceptResult, RunSummary

EXPERIMENT = "_continual"  # no concept's name begins so

_COLOURS = {"failed": "bold red", "refused": "bold red", "quarantined": "red", "left": "yellow"}


@dataclass(frozen=True)
class RunRecord:
    """Where a run writes what it did.

    Attributes:
        folder: its files on this machine; they are artifacts of the MLflow run as well.
    """

    root: Path
    store: Store
    run_id: str
    folder: Path

    def plan(self, plan: Sequence[Decision]) -> None:
        self.artifact("plan.json", [decision.to_json() for decision in plan])

    def note(self, result: ConceptResult) -> None:
        """Say what became of a concept, at once."""
        colour = _COLOURS.get(result.status, "green")
        stderr.print(f"[{colour}]{result.status}[/] {result.name}: ", end="", highlight=False)
        stderr.print(result.reason, markup=False, highlight=False, soft_wrap=True)
        metrics = {f"budget/{result.name}/wall_seconds": result.seconds}
        metrics[f"budget/{result.name}/gpu_seconds"] = result.gpu_seconds
        runs.log_final(self.store, self.run_id, metrics)
        self.store.client.set_tag(self.run_id, f"concept/{result.name}", result.status)

    def artifact(self, name: str, value: Any) -> Path:
        """Keep a JSON value as a file of the run."""
        write_json(self.folder / name, redact_values(finite(value)))
        return self.file(self.folder / name)

    def file(self, path: Path) -> Path:
        """Keep a file that lies in the run's folder."""
        self.store.client.log_artifact(self.run_id, str(path))
        return path

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        tracker = runs.RunTracker(self.store, self.run_id)
        tracker.log_metrics(metrics, step)
        tracker.close()

    def finish(self, summary: RunSummary) -> dict[str, Any]:
        """Keep the summary; returns it as JSON."""
        facts: dict[str, Any] = finite(replace(summary, run=self.run_id).to_json())
        self.artifact("summary.json", facts)
        for key in ("state", "message", "mode"):
            self.store.client.set_tag(self.run_id, f"summary/{key}", redact(str(facts[key]))[:5000])
        return facts


@contextlib.contextmanager
def record_run(root: Path, profile: Profile, mode: str) -> Iterator[RunRecord]:
    """The MLflow run of a run over many concepts."""
    store, code = open_shared_store(root), code_version(root)  # its bundle's alias moves under the lock
    tags = {
        "purecc/mode": mode,
        "purecc/profile": profile.name,
        "profile/digest": profile.digest(),
        "code/commit": code.commit or "none",
        "code/dirty": str(code.dirty).lower(),
    }
    with runs.run(store, EXPERIMENT, f"continual {mode}", tags=tags) as tracker:
        runs.log_parameters(store, tracker.run_id, profile.continual.model_dump(mode="json"))
        folder = root / ".purecc" / "continual" / tracker.run_id
        folder.mkdir(parents=True, exist_ok=True)
        yield RunRecord(root, store, tracker.run_id, folder)
