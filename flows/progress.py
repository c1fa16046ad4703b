"""Live progress on stderr: which stage, loss, lambda*, time left; plain lines where stderr is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from components.learning.tracker import Tracker
from flows.console import stderr

_LINE_SECONDS = 15.0  # between two plain lines


class StageProgress:
    """A tracker that shows what it passes on."""

    def __init__(self, inner: Tracker, show: Display):
        self._inner, self._show = inner, show

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._inner.log_metrics(metrics, step)
        self._show.summary = describe(metrics)
        self._show.advance(step, self._show.summary)  # a step's number is that of the steps done

    def log_image(self, name: str, path: Path) -> None:
        self._inner.log_image(name, path)

    def flush(self) -> None:
        self._inner.flush()


def describe(metrics: Mapping[str, float]) -> str:
    """`loss 0.1234  λ* 0.56 [0.1..0.9]`, of the metrics that are there."""
    parts = []
    loss = metrics.get("loss/total", metrics.get("loss/cc"))
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    mean = metrics.get("lambda_star/mean")
    if mean is not None:
        spread = [metrics.get(f"lambda_star/{end}") for end in ("min", "max")]
        inside = "" if None in spread else f" [{spread[0]:.2f}..{spread[1]:.2f}]"
        parts.append(f"λ* {mean:.3f}{inside}")
    return "  ".join(parts)


class Display:
    """One stage's progress: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, title: str, total: int, bar: Progress | None):
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, facts="") if bar else None
        self._begin = self._last = time.monotonic()
        self._first: int | None = None
        self.summary = ""  # what the line that stays says

    def advance(self, done: int, facts: str = "", total: int | None = None) -> None:
        """Show that `done` steps of the total are behind us."""
        if total is not None:
            self._total = total
        if self._first is None:
            self._first, self._begin = done, time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, facts=_shortened(facts))
            return
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS or done == self._total:
            self._last = now
            stderr.print(f"{self._title}: {done}/{self._total}  {facts}  {self._left(done, now)}".rstrip(), style="dim")

    def _left(self, done: int, now: float) -> str:
        made = done - (self._first or 0)
        if made <= 0 or done >= self._total:
            return ""
        seconds = (now - self._begin) / made * (self._total - done)
        return f"about {int(seconds // 60)}:{int(seconds % 60):02d} left"


def _shortened(facts: str) -> str:
    """What leaves room for the time in a narrow terminal: the spread goes first."""
    room = max(24, stderr.width - 52)
    if len(facts) > room:
        facts = facts.split(" [")[0]
    return facts if len(facts) <= room else f"{facts[: room - 1]}…"


@contextlib.contextmanager
def display(title: str, total: int) -> Iterator[Display]:
    """The progress of one stage; the bar goes when the stage ends."""
    if not stderr.is_terminal:
        stderr.print(f"{title} ...", style="dim")
        yield Display(title, total, None)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    begin = time.monotonic()
    with Progress(*columns, console=stderr, transient=True) as bar:
        show = Display(title, total, bar)
        yield show
    seconds = time.monotonic() - begin
    stderr.print(f"{title:<22} {int(seconds // 60)}:{int(seconds % 60):02d}  {show.summary}".rstrip(), style="dim")
