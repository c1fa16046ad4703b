"""What the validation of a concept found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.errors import InvalidInput


@dataclass(frozen=True)
class Finding:
    """One expectation that one value fails.

    Attributes:
        expectation: what is expected, as a stable key, e.g. `references_enough`.
        field: the field of the file, e.g. `line 2: text` or `mode`.
        value: the value that fails, JSON-able.
        mend: what to do about it.
        file: the file it was found in.
        problem: what is wrong, in words.
    """

    expectation: str
    field: str
    value: Any
    mend: str
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.problem} ({self.mend})"


@dataclass(frozen=True)
class ValidationReport:
    """The judgement on a concept folder.

    Attributes:
        concept: the folder's name.
        errors: findings that block.
        warnings: findings that are shown and recorded.
        facts: a row per image (`facts.IMAGE_FACTS`).
        docs_index: the page where the data docs begin.
    """

    concept: str
    errors: list[Finding]
    warnings: list[Finding]
    facts: pd.DataFrame
    docs_index: Path

    @property
    def success(self) -> bool:
        """Whether nothing blocks."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON-able mapping."""
        return {
            "name": self.concept,
            "success": self.success,
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
            "facts": [{str(key): value for key, value in row.items()} for row in self.facts.to_dict(orient="records")],
            "docs_index": str(self.docs_index),
        }

    def raise_for_errors(self) -> None:
        """Raise the first error, with the number of the others.

        Raises:
            InvalidInput: there is one.
        """
        if not self.errors:
            return
        first, others = self.errors[0], len(self.errors) - 1
        more = f"; and {others} more: {'; '.join(map(str, self.errors[1:4]))}" if others else ""
        raise InvalidInput(f"{first.problem}{more}", file=first.file, field=first.field, mend=first.mend)
