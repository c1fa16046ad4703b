"""The table that methods are compared by: a row (a cell) per method, concept, seed, training step and inference scale.

Beside the columns of `KEYS` a cell has one column per metric (`fidelity/dino`, ...), what it cost (`cost/...`), and, if
measuring it failed, the reason in `error`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from components.errors import InvalidInput
from components.files import atomic_file

KEYS = ("method", "concept", "kind", "seed", "step", "scale")
"""What names a cell.

`method` is free text, `kind` is `instance` or `style`, `step` the steps trained, `scale` how strongly the adapter's
LoRA and weight differences act at inference (1: as trained).
"""
ERROR = "error"
COSTS = ("cost/seconds_per_step", "cost/seconds", "cost/peak_mib", "cost/adapter_mib")
"""Cost of a cell: seconds per training step and in all, peak memory and size of the adapter in MiB."""
_DEFAULTS: dict[str, str | float] = {"kind": "instance", "scale": 1.0}


def read_cells(file: Path) -> pd.DataFrame:
    """Read a table; `kind` and `scale` may be missing (an instance, as trained), `variant` may stand for `method`.

    Raises:
        InvalidInput: no such file, no table, a column that names cells is missing or has a wrong value, or a cell
            stands there twice.
    """
    try:
        cells = pd.read_csv(file, dtype={"method": str, "variant": str, "concept": str, ERROR: str})
    except (OSError, ValueError) as error:
        raise InvalidInput(f"no table of cells: {error}", file=file) from error
    if "method" not in cells:
        cells = cells.rename(columns={"variant": "method"})
    for column, value in _DEFAULTS.items():
        if column not in cells:
            cells = cells.assign(**{column: value})
    return checked(cells, file)


def checked(cells: pd.DataFrame, file: Path | None = None) -> pd.DataFrame:
    """The table, its keys in front.

    Raises:
        InvalidInput: as in `read_cells`.
    """
    for column in KEYS:
        if column not in cells:
            raise InvalidInput("is missing", file=file, field=column, mend="measure the cells again")
        if cells[column].isna().any():
            raise InvalidInput(f"row {int(cells[column].isna().argmax()) + 2} has none", file=file, field=column)
    for column in ("seed", "step", "scale"):
        if not pd.api.types.is_numeric_dtype(cells[column]):
            raise InvalidInput("is not a number in every row", file=file, field=column)
    if not set(cells["kind"]) <= {"instance", "style"}:
        raise InvalidInput(f"is one of {sorted(set(cells['kind']))}", file=file, field="kind", mend="instance or style")
    twice = cells.duplicated(list(KEYS))
    if twice.any():
        first = cells.loc[twice, list(KEYS)].iloc[0].to_dict()
        raise InvalidInput(f"{int(twice.sum())} cells stand there twice, first {first}", file=file)
    return cells[[*KEYS, *(column for column in cells if column not in KEYS)]]


def write_cells(cells: pd.DataFrame, file: Path) -> None:
    """Write the table as CSV, atomically, figures to six digits."""
    checked(cells, file)
    with atomic_file(file) as temporary:
        cells.to_csv(temporary, index=False, float_format="%.6g")


def measured(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that did not fail."""
    return cells if ERROR not in cells else cells[cells[ERROR].isna() | (cells[ERROR] == "")]


def failed(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that failed, with `error`."""
    return cells.drop(index=measured(cells).index)


def methods_of(cells: pd.DataFrame) -> list[str]:
    """The methods in the order of their first cell."""
    return list(dict.fromkeys(cells["method"]))


def at_budget(cells: pd.DataFrame) -> pd.DataFrame:
    """One cell per method, concept and seed: trained to the end, acting as trained.

    This is the single point that papers report; `curves` says what it hides.
    """
    usual = measured(cells)
    usual = usual[usual["scale"] == 1]
    last = usual.groupby(["method", "concept", "seed"])["step"].transform("max")
    return usual[usual["step"] == last]
