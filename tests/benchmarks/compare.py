"""Do two runs of `make bench` say the same? Their ratios, side by side.

    python tests/benchmarks/compare.py first.json second.json [--within 0.1]

Lists every ratio that differs by more, and every row that one of them lacks; exit 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]


def ratios(found: dict[str, Any]) -> dict[Key, float]:
    """(group, name, against) -> ratio."""
    return {
        (row["group"], row["name"], f"against {row['against']}"): row["ratio"]
        for row in found["rows"]
        if row["ratio"] is not None
    }


def disagreements(first: dict[str, Any], second: dict[str, Any], within: float) -> list[str]:
    """A line for each ratio by which two runs do not agree: the larger is more than `within` above the smaller."""
    one, other = ratios(first), ratios(second)
    lines = [
        f"{' / '.join(key)}: only in the {'first' if key in one else 'second'}"
        for key in sorted(one.keys() ^ other.keys())
    ]
    for key in sorted(one.keys() & other.keys()):
        apart = max(one[key], other[key]) / min(one[key], other[key]) - 1
        if apart > within:
            lines.append(f"{' / '.join(key)}: {one[key]:.3f} and {other[key]:.3f}, {100 * apart:.0f} % apart")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--within", type=float, default=0.1)
    options = parser.parse_args()
    first, second = (json.loads(file.read_text(encoding="utf-8")) for file in (options.first, options.second))
    for which in ("machine", "profile", "overrides", "miniature"):
        if first[which] != second[which]:
            print(f"note: {which} differs", file=sys.stderr)
    lines = disagreements(first, second, options.within)
    shared = len(ratios(first).keys() & ratios(second).keys())
    print("\n".join([*lines, f"{shared} ratios in both, {len(lines)} disagreements beyond {options.within:.0%}"]))
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
