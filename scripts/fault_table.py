"""The fault table: what can go wrong with a promotion, done for real, and where each ends.

    python scripts/fault_table.py [--out docs/faults.md] [--only embedded|servers]

Everything runs in a temporary project on an untrained model family, in some minutes. Processes are killed with SIGKILL.
The second part starts the servers of infra/compose.yaml as processes, which needs PostgreSQL and Redis (apt-get install
postgresql redis-server) and the packages of `purecc[dev]`.
Exit code 1 if one row does not end in the right champion with a clear message.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import components.quiet  # noqa: F401  (before every dependency)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)


from fault_bench import Bench, Row
from fault_contents import (
    alias_deleted,
    bytes_deleted,
    clock_goes_back,
    foreign_report,
    long_header,
    no_effect,
    not_a_number,
    partial_upload,
    pickled,
    sound,
    spoilt,
    truncate,
    wrong_base,
)
from fault_races import kills, races, server_races


def embedded(bench: Bench) -> list[Row]:
    """Every fault in the embedded store."""
    return [
        *kills(bench),
        *races(bench),
        partial_upload(bench),
        sound(bench),
        spoilt(bench, "truncated safetensors", truncate),
        spoilt(bench, "header that states a terabyte", long_header),
        spoilt(bench, "pickle renamed to .safetensors", pickled),
        spoilt(bench, "NaN weights", not_a_number),
        spoilt(bench, "adapter without effect", no_effect, original=True),
        wrong_base(bench),
        *bytes_deleted(bench),
        *alias_deleted(bench),
        *foreign_report(bench),
        clock_goes_back(bench),
    ]


HEAD = """\
Written by `python scripts/fault_table.py --out docs/faults.md`; with `--only` the rows of the other part stay as they
were. Before every fault version 1 is `previous`, 2 the champion, and 3 has passed its gates.
Races begin without a champion; versions get the scores 1 to N in a shuffled order, and the gate lets
none pass that is worse than the champion. In rows that end in `servers` MLflow and Prefect run over
HTTP, with passwords, on PostgreSQL, Redis and S3 (the processes of `infra/compose.yaml`), and every
promoter has a project folder of its own, as on a host of its own. Such a race is also checked for
moves that were counted twice, for a champion replaced by a worse one, and for what is half-done.
The adapters of the rows from `none` to `wrong base` take the whole way: registered with a picture of
their own, judged, loaded and drawn with by a fresh process as by a consumer, offered for promotion.
"""
PARTS = {"embedded": embedded, "servers": server_races}


def table(rows: list[Row], hide: str) -> str:
    """The rows as a Markdown table."""
    lines = ["| fault | ends in | right | message |", "|---|---|---|---|"]
    for each in rows:
        message = " ".join(re.sub(rf"{re.escape(hide)}|/[^ ]*/purecc-\w+", "...", each.message).split())
        message = re.sub(r"\.\.\./project-\d+/\S*?/artifacts/(?=adapter)", ".../", message).replace("|", "/")
        shown = message if len(message) <= 220 else f"{message[:217]}..."
        lines.append(f"| {each.fault} | {each.champion} | {'yes' if each.right else '**NO**'} | {shown} |")
    return "\n".join(lines) + "\n"


def of_others(file: Path, part: str | None) -> tuple[str, str]:
    """The lines of the table in `file` that the other part wrote: those to stand before this one's, and after."""
    if part is None or not file.is_file():
        return "", ""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!fault )", line)]
    kept = "".join(f"{line}\n" for line in lines if ("servers" in line.split("|")[1]) != (part == "servers"))
    return (kept, "") if part == "servers" else ("", kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table into this Markdown file")
    parser.add_argument("--only", choices=tuple(PARTS), help="of the two parts; default: both; --out keeps the other")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are not left behind
    with tempfile.TemporaryDirectory(prefix="purecc-faults-") as folder:
        bench, rows = Bench(Path(folder)), []
        for part in PARTS:
            if arguments.only in (None, part):
                rows += PARTS[part](bench)
        text = table(rows, folder)
    print(json.dumps([each.__dict__ for each in rows], indent=2) if arguments.json else text)
    if arguments.out:
        head = f"# What can go wrong with a promotion\n\n{HEAD}\n"
        titles, before, after = "".join(text.splitlines(keepends=True)[:2]), *of_others(arguments.out, arguments.only)
        rest = "".join(text.splitlines(keepends=True)[2:])
        arguments.out.write_text(head + titles + before + rest + after, encoding="utf-8")
    return 0 if all(each.right for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
