"""Kill parts of `purecc continual` at random moments, run it again plainly, and compare with an undisturbed run.

    python tests/crash/kill_table.py --kills 30 --seed 0 --out docs/crashes.md
    python tests/crash/kill_table.py --kills 30 --embedded

With --out the rows are also kept as JSON beside the page, and a table that was cut off goes on where it was, as long as
an undisturbed run still comes to the same champions.

Four concepts on untrained micro models; Prefect and MLflow over HTTP on PostgreSQL with two workers, or everything
embedded. Each row is one kill -9: of a worker's process, of a worker with all that it runs, of the process that trains,
of the run that dispatches, of the MLflow server, of PostgreSQL. Half of the moments are drawn from the length of an
undisturbed run, the other half from its critical places: in the middle of a checkpoint, of a stage's publication, of an
upload, of a registration, a judgement, a promotion, a bundle. Then what a supervisor would start again is started, and
after one plain run again a row has to show the undisturbed run's champions with bit-identical adapters, no process
left, no version lost or doubled, no run that stays open, and no partial file. Exit code 1 if a row does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from components.files import write_json, write_text  # noqa: E402
from crash.sites import PLACES, Site, server_site  # noqa: E402  (found by the line before, in a program)
from crash.state import State, leftovers, state_of  # noqa: E402

CONCEPTS = {"spotted_star": "star", "ball": "circle", "wash": "style", "second_star": "star"}
HALVINGS = 4
PATIENCE = 1800.0  # seconds for one run, on a machine that does other things


@dataclass(frozen=True)
class Moment:
    """When a kill falls.

    Attributes:
        place: one of `PLACES`, waited for after `seconds`; or `any`.
        seconds: since the start of the run.
        more: seconds after the place was reached.
    """

    target: str
    place: str
    seconds: float
    more: float = 0.0


def moments(seconds: float, count: int, targets: tuple[str, ...], source: random.Random) -> Iterator[Moment]:
    """The moments of `count` kills in runs that take about `seconds`."""
    for number in range(count):
        target = targets[(number // 2) % len(targets)]
        if number % 2 == 0:
            yield Moment(target, "any", source.uniform(0.5, max(seconds, 1.0)))
        else:
            place = PLACES[number // 2 % len(PLACES)]
            yield Moment(target, place, source.uniform(0.0, seconds / 3), source.uniform(0.0, 0.1))


@dataclass(frozen=True)
class Row:
    """One kill and what came after it.

    Attributes:
        code: exit code of the run itself; None: there was nothing left to kill.
        again: exit code of the plain run after it.
    """

    number: int
    moment: Moment
    after: float
    killed: bool
    code: int | None
    again: int | None
    problems: list[str]

    def __str__(self) -> str:
        verdict = "; ".join(self.problems) or "as undisturbed"
        hit = str(self.code) if self.killed else "had ended"
        facts = [self.number, self.moment.target, self.moment.place, f"{self.after:.1f} s", hit, self.again, verdict]
        return f"| {' | '.join(str(fact).replace('|', '/') for fact in facts)} |"


HEAD = """| kill | of | place | after | code of the run | code of the run again | result |
|---|---|---|---|---|---|---|"""


def ended(process: subprocess.Popen[bytes], problems: list[str], what: str) -> int | None:
    """The exit code of a run that has to end by itself."""
    try:
        return process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        problems.append(f"{what} did not end within {PATIENCE:g} s")
        return None


def kill_once(site: Site, number: int, moment: Moment, expected: State, source: random.Random) -> Row:
    """One kill in a fresh project, one plain run after it, and the comparison."""
    site.fresh()
    run = site.start()
    begun = time.monotonic()
    while run.poll() is None and time.monotonic() - begun < moment.seconds:
        time.sleep(0.01)
    if moment.place != "any" and run.poll() is None:
        happened = site.watch(moment.place)
        while run.poll() is None and not happened():
            time.sleep(0.005)
        time.sleep(moment.more)
    after = time.monotonic() - begun
    killed = site.kill(moment.target, run, source)
    problems: list[str] = []
    if killed:
        problems += site.recovered(moment.target)
    code = ended(run, problems, "the run")
    again = ended(site.start(), problems, "the run again")
    if again != 0:
        problems.append("the run again did not complete")
    try:
        problems += state_of(site.root).differences(expected)
        problems += leftovers(site.root) + site.left_open()
    except Exception as error:  # the row says it
        problems.append(f"{type(error).__name__}: {error}")
    problems += [f"process {pid} lives on after the run again" for pid in site.orphans()]
    return Row(number, moment, after, killed, code, again, problems)


def kill_in_time(site: Site, number: int, moment: Moment, expected: State, seed: int) -> Row:
    """A kill that finds something to kill: a run that had ended by its moment is none, and is tried at half of it."""
    for _ in range(HALVINGS):
        row = kill_once(site, number, moment, expected, random.Random(f"{seed}/{number}"))
        if row.killed or row.problems:
            break
        moment = replace(moment, seconds=moment.seconds / 2)
    return row


@dataclass(frozen=True)
class Calm:
    """A run that nothing disturbed: what it left, and how long it took."""

    state: State
    seconds: float


def undisturbed(site: Site) -> Calm:
    """Run once without a kill."""
    site.fresh()
    begun = time.monotonic()
    assert site.start().wait() == 0, site.log.read_text()[-3000:]
    return Calm(state_of(site.root), time.monotonic() - begun)


def run(
    site: Site,
    planned: list[Moment] | int,
    *,
    seed: int = 0,
    out: Path | None = None,
    title: str = "",
    calm: Calm | None = None,
) -> list[Row]:
    """All rows; each is printed as soon as it is there, and the file `out` holds those that are.

    Args:
        planned: the moments, or how many to draw from the seed.
        calm: what to compare with, of any site with the same project; None: an undisturbed run of this one.
    """
    calm = calm or undisturbed(site)
    first = f"undisturbed: {calm.seconds:.0f} s, {json.dumps(calm.state.champions)}\n\n{HEAD}"
    print(first, flush=True)
    rows, seconds = ([], calm.seconds) if out is None else kept_rows(out, title, calm)
    if isinstance(planned, int):
        planned = list(moments(seconds, planned, site.targets, random.Random(seed)))
    for number, moment in enumerate(planned, 1):
        if number <= len(rows) and rows[number - 1].killed:
            print(rows[number - 1], flush=True)
            continue
        row = kill_in_time(site, number, moment, calm.state, seed)
        rows[number - 1 : number] = [row]
        print(row, flush=True)
        if row.problems:  # kept for whoever looks into it
            shutil.copytree(site.root, site.root.parent / f"failed-{number}", symlinks=True, dirs_exist_ok=True)
        if out is not None:
            facts = {"title": title, "champions": calm.state.champions, "seconds": seconds}
            facts["rows"] = [asdict(row) for row in rows]
            write_json(out.with_suffix(".json"), facts)
            write_text(out, page(rows, seconds, title))
    return rows


def kept_rows(out: Path, title: str, calm: Calm) -> tuple[list[Row], float]:
    """The rows that a table has already, and the length of the run from which its moments were drawn."""
    file = out.with_suffix(".json")
    if not file.is_file():
        return [], calm.seconds
    facts = json.loads(file.read_text(encoding="utf-8"))
    champions = {name: tuple(champion) for name, champion in facts["champions"].items()}
    if facts["title"] != title or champions != calm.state.champions:
        return [], calm.seconds
    return [Row(**{**row, "moment": Moment(**row["moment"])}) for row in facts["rows"]], facts["seconds"]


def page(rows: list[Row], seconds: float, title: str) -> str:
    """The table as a page."""
    kills = [row for row in rows if row.killed]
    good = sum(not row.problems for row in kills)
    missed = len(rows) - len(kills)
    late = f" In {missed} rows the run had ended before its moment." if missed else ""
    lines = [
        "# What kills leave behind\n",
        f"Written by `{title}`.",
        "Each row is one `kill -9` in a run of `purecc continual` over four concepts, then one plain run again. `as",
        "undisturbed`: the champions of a run that nothing disturbed with bit-identical adapters, no version lost or",
        "doubled, no process, open run or partial file left. An exit code of -9 is the killed run's own; 1 says that",
        "concepts whose process was killed are to be done by the next run; 0 that the run came through by itself.\n",
        f"An undisturbed run took {seconds:.0f} s. {good} of {len(kills)} kills ended as undisturbed.{late}\n",
        HEAD,
        *(str(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def made(
    folder: Path, concepts: int, *, embedded: bool, family: Path | None = None, prefect_home: Path | None = None
) -> Iterator[Site]:
    """A site with a project of so many concepts.

    Args:
        family: models to use; None: they are made.
        prefect_home: files of an embedded Prefect to begin with; None: each row's first run makes them.
    """
    import small_project

    if family is None:
        from components.world.family import create_untrained

        family = folder / "family"
        create_untrained(family, size="micro", seed=0)
    template = folder / "template"
    template.mkdir(parents=True)
    small_project.build(template, family, dict(list(CONCEPTS.items())[:concepts]))
    if embedded:
        if prefect_home is not None:
            shutil.copytree(prefect_home, template / ".purecc" / "prefect")
        with contextlib.closing(Site(template, folder / "project")) as embedded_site:
            yield embedded_site
        return
    with server_site(template, folder) as site, contextlib.closing(site):
        yield site


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--concepts", type=int, default=4, choices=range(1, len(CONCEPTS) + 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedded", action="store_true", help="no servers and workers: all in one process")
    parser.add_argument("--folder", type=Path, help="where the projects are made; a failed row's stays there")
    parser.add_argument("--out", type=Path, help="the table as a Markdown page")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the end of the servers
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="purecc-kills-"))
    title = f"python tests/crash/kill_table.py --kills {arguments.kills} --seed {arguments.seed}"
    with made(folder, arguments.concepts, embedded=arguments.embedded) as site:
        rows = run(site, arguments.kills, seed=arguments.seed, out=arguments.out, title=title)
    bad = [row for row in rows if row.problems]
    print(f"\n{len(rows) - len(bad)} of {len(rows)} rows as undisturbed")
    if not bad and arguments.folder is None:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
