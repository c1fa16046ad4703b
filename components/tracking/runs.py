"""MLflow runs: one per customize, child runs for its stages, metrics written in batches."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components import disk
from components.errors import PureCCError
from components.secrets import redact, redact_values
from components.tracking import liveness
from components.tracking.store import Store, is_away

logger = logging.getLogger(__name__)

_BATCH = 1000  # points per call: what the REST API accepts
_VALUE_LIMIT = 6000  # characters of a parameter's value
_DIGEST_LIMIT = 36  # characters of a dataset's digest


TRANSIENT = "error/transient"
GPUS = "process/gpus"
"""Tag: GPUs that a run's process and its peers use."""
FLOW_RUN = "prefect/flow_run"
"""Tag: id of the flow run that a run belongs to."""
_PASSING = {"RestException", "OperationalError"}  # of a server or a database; by name, their libraries stay unloaded


def is_transient(error: BaseException) -> bool:
    """Whether an error is of the surroundings (disk, network, a server) and says nothing about the work itself."""
    if disk.is_full(error) or is_away(error):  # whatever a library makes of it
        return True
    if isinstance(error, PureCCError):
        return False
    return isinstance(error, OSError | TimeoutError) or type(error).__name__ in _PASSING


class RunTracker:
    """Writes the metrics of one run, many steps per call.

    Points are kept until `batch` of them wait or `every` seconds went by: at 14 metrics a step that is one call in
    about 70 steps. A store that does not answer costs a warning and a later try, not the training; what never could be
    written is an error at `close`.

    Args:
        replay: a history.jsonl whose rows before the first logged step are written first, so that a resumed stage has
            its whole course in one run.
    """

    def __init__(
        self, store: Store, run_id: str, *, replay: Path | None = None, batch: int = _BATCH, every: float = 20.0
    ):
        self.run_id = run_id
        self._store, self._replay, self._batch, self._every = store, replay, batch, every
        self._points: list[tuple[str, float, int, int]] = []
        self._last = time.monotonic()
        self._failing = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self._replay is not None:
            self._replay_before(step)
        self._add(metrics, step)
        if time.monotonic() - self._last >= self._every:
            self.flush()
        elif len(self._points) >= self._batch and not self._failing:  # a failed call is tried again after `every`
            self._write(full=True)

    def log_image(self, name: str, path: Path) -> None:
        """Store an image file under `images/<name>` of the run."""
        self._attempt(lambda: self._store.client.log_artifact(self.run_id, str(path), f"images/{name}"))

    def flush(self) -> None:
        """Write what waits; what cannot be written now goes on waiting."""
        self._write(full=False)

    def _write(self, *, full: bool) -> None:
        """Write full batches, or everything."""
        from mlflow.entities import Metric

        self._last = time.monotonic()
        self._failing = False
        while len(self._points) >= (self._batch if full else 1):
            part = self._points[: self._batch]
            entities = [Metric(key, value, stamp, step) for key, value, stamp, step in part]
            if not self._attempt(functools.partial(self._store.client.log_batch, self.run_id, metrics=entities)):
                self._failing, self._last = True, time.monotonic()
                return
            del self._points[: len(part)]

    def close(self) -> None:
        """Flush for the last time.

        Raises:
            PureCCError: points remain that the store did not take.
        """
        self.flush()
        if self._points:
            raise PureCCError(f"run {self.run_id}: {len(self._points)} metric points could not be written to the store")

    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._points += [(key, float(value), now, step) for key, value in metrics.items()]

    def _replay_before(self, first: int) -> None:
        history, self._replay = self._replay, None
        if history is None or not history.is_file():
            return
        for row in read_history(history):
            step = int(row.pop("step"))
            if step < first:
                self._add(row, step)

    def _attempt(self, call: Callable[[], object]) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except (MlflowException, OSError) as error:  # the training is worth more than its curve
            logger.warning("run %s: the tracking store did not answer, trying again later: %s", self.run_id, error)
            return False
        return True


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a history.jsonl; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows.append({key: float(value) for key, value in row.items() if isinstance(value, int | float)})
    return rows


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted parameters."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: str(value)[:_VALUE_LIMIT]}


@contextlib.contextmanager
def run(
    store: Store,
    concept: str,
    name: str,
    *,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    replay: Path | None = None,
) -> Iterator[RunTracker]:
    """A run of the experiment `purecc/<concept>`: FINISHED on leaving, FAILED on an error, KILLED on an interrupt."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

    all_tags = {MLFLOW_SOURCE_NAME: "purecc", MLFLOW_SOURCE_TYPE: "LOCAL", **liveness.tags(), **(tags or {})}
    if parent is not None:
        all_tags[MLFLOW_PARENT_RUN_ID] = parent
    created = store.client.create_run(store.experiment(concept), run_name=name, tags=all_tags)
    tracker = RunTracker(store, created.info.run_id, replay=replay)
    try:
        with liveness.heartbeat(store, tracker.run_id):
            yield tracker
            tracker.close()
    except BaseException as error:
        tracker.flush()
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with contextlib.suppress(Exception):  # the first error is the one to show
            store.client.set_tag(tracker.run_id, "error", redact(str(error))[:_VALUE_LIMIT])
            store.client.set_tag(tracker.run_id, TRANSIENT, str(is_transient(error)).lower())
            store.client.set_terminated(tracker.run_id, status)
        raise
    store.client.set_terminated(tracker.run_id, "FINISHED")


def resume(store: Store, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """The run of the experiment `purecc/<experiment>` with this name and these tags, made if there is none.

    Returns:
        its id; a run that is made stays RUNNING until `reopened` ends it.
    """
    identifier = store.experiment(experiment)
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {"mlflow.runName": name, **tags}.items())
    found = store.client.search_runs([identifier], filter_string=wanted, max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(store.client.create_run(identifier, run_name=name, tags=dict(tags)).info.run_id)


@contextlib.contextmanager
def reopened(store: Store, run_id: str) -> Iterator[None]:
    """Inside, the run is RUNNING; then FINISHED, FAILED on an error, KILLED on an interrupt."""
    store.client.update_run(run_id, status="RUNNING")
    status = "FINISHED"
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        store.client.set_terminated(run_id, status)


def gpu_seconds(store: Store, concept: str, flow_run: str) -> float:
    """Seconds times GPUs of the runs of a concept that belong to a flow run, however they ended."""
    found = store.client.search_runs([store.experiment(concept)], f"tags.`{FLOW_RUN}` = '{flow_run}'")
    return float(sum(_seconds(run) * int(run.data.tags.get(GPUS, "0")) for run in found))


def _seconds(run: Any) -> float:
    """How long a run took; one whose process died, to its last sign of life."""
    end = run.info.end_time or 1000 * int(run.data.tags.get(liveness.HEARTBEAT, "0"))
    return float(max(0.0, (end - run.info.start_time) / 1000))


def log_parameters(store: Store, run_id: str, settings: Mapping[str, Any]) -> None:
    """Log nested settings as flat parameters, in one call per hundred."""
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in flatten(redact_values(settings)).items()]
    for start in range(0, len(params), 100):
        store.client.log_batch(run_id, params=params[start : start + 100])


def log_dataset(store: Store, run_id: str, concept: str, source: str, fingerprint: str, pointer: str) -> None:
    """Record the concept's data as the run's dataset input.

    Args:
        source: path of the concept's folder, relative to the project.
        fingerprint: DVC's digest of the data.
        pointer: the file that DVC versions it by.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=concept,
        digest=fingerprint[:_DIGEST_LIMIT],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"fingerprint": fingerprint, "pointer": pointer}),
    )
    tags = [InputTag("mlflow.data.context", "training"), InputTag("dvc.pointer", pointer)]
    store.client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def log_final(store: Store, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log metrics that have no course, such as an evaluation's."""
    tracker = RunTracker(store, run_id)
    tracker.log_metrics(metrics, 0)
    tracker.close()


def fetch_report(store: Store, run: str, reports: Path) -> Path | None:
    """The report of a run, downloaded to `reports/<concept>/<run>.html`; None where the store has none of it."""
    from mlflow.exceptions import MlflowException

    try:
        concept = store.client.get_run(run).data.tags.get("purecc/concept", "")
        name = next(
            (item.path for item in store.client.list_artifacts(run, "report") if item.path.endswith(".html")), None
        )
        if name is None or not concept or "/" in concept or concept.startswith("."):
            return None
        target = reports / concept
        target.mkdir(parents=True, exist_ok=True)
        local = Path(store.client.download_artifacts(run, name, str(target)))
    except (MlflowException, OSError):
        return None
    return local.replace(target / f"{run}.html")
