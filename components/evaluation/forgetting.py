"""What learning one concept after another does to those before (METHOD section 8).

`R[i, j]` is the metric of concept j on the model that has learned the concepts 0..i, T the number of concepts. Every
metric here is one where higher is better.

- ACC = mean_j R[T-1, j] (average accuracy: Lopez-Paz & Ranzato 2017, "Gradient episodic memory")
- BWT = mean_{j < T-1} (R[T-1, j] - R[j, j])  (backward transfer, the same paper; negative: forgetting)
- F_j = max_{l in j..T-2} R[l, j] - R[T-1, j], j < T-1  (forgetting: Chaudhry et al. 2018, "Riemannian walk")
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def prior_preservation(row: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What is measured on prompts without a concept, each metric the mean over the prompt sets that have it.

    Args:
        row: concept -> metrics of its prompt set, on one model.
    """
    found: dict[str, list[float]] = {}
    for metrics in row.values():
        for key, value in metrics.items():
            if key.startswith("preservation/prior_") and not key.endswith("_floor"):
                found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in sorted(found.items())}


@dataclass(frozen=True)
class Forgetting:
    """The matrix of a sequence of concepts, and what it says.

    Attributes:
        names: the concepts, in the order in which they were learned.
        matrix_TT: (T, T), NaN where a value was not measured.
    """

    names: tuple[str, ...]
    matrix_TT: NDArray[np.float64]

    @classmethod
    def of_rows(cls, names: Sequence[str], rows: Sequence[Sequence[float]]) -> Forgetting:
        """The matrix of what was learned so far.

        Raises:
            ValueError: the rows are not T x T.
        """
        matrix_TT = np.array(rows, dtype=np.float64).reshape(len(rows), -1) if len(rows) else np.zeros((0, 0))
        if matrix_TT.shape != (len(names), len(names)):
            raise ValueError(f"{matrix_TT.shape} values for {len(names)} concepts")
        return cls(tuple(names), matrix_TT)

    @property
    def accuracy(self) -> float:
        """ACC."""
        return float(self.matrix_TT[-1].mean()) if len(self.names) else math.nan

    @property
    def backward_transfer(self) -> float:
        """BWT; 0 for a single concept, which has nothing before it."""
        last = len(self.names) - 1
        if last < 1:
            return 0.0
        return float((self.matrix_TT[last, :last] - np.diagonal(self.matrix_TT)[:last]).mean())

    @property
    def per_concept(self) -> dict[str, float]:
        """Concept -> F_j, for all but the last one."""
        last = len(self.names) - 1
        return {
            name: float(self.matrix_TT[j:last, j].max() - self.matrix_TT[last, j])
            for j, name in enumerate(self.names[:last])
        }

    @property
    def worst(self) -> float:
        """max_j F_j; 0 for a single concept; NaN, which no gate passes, if any is."""
        values = list(self.per_concept.values())
        return float(np.max(values)) if values else 0.0  # of NaN and numbers: NaN

    @property
    def mean(self) -> float:
        """mean_j F_j."""
        values = list(self.per_concept.values())
        return float(np.mean(values)) if values else 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Keys as MLflow gets them."""
        return {
            "continual/accuracy": self.accuracy,
            "continual/backward_transfer": self.backward_transfer,
            "continual/forgetting_max": self.worst,
            "continual/forgetting_mean": self.mean,
        }

    def refusal(self, maximum: float | None) -> str:
        """Why the sequence is refused; empty if it is not. A value that is missing or not finite fails."""
        if maximum is None or self.worst <= maximum:
            return ""
        if not math.isfinite(self.worst):
            return f"forgetting is {self.worst}, needs <= {maximum:g}"
        name = max(self.per_concept, key=lambda concept: self.per_concept[concept])
        return f"forgetting of {name} = {self.worst:g}, needs <= {maximum:g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "concepts": list(self.names),
            "matrix": [[None if math.isnan(value) else value for value in row] for row in self.matrix_TT.tolist()],
            "forgetting": self.per_concept,
            "metrics": self.metrics,
        }

    def to_csv(self) -> str:
        """One row per learned concept, one column per judged concept."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["after", *self.names])
        for name, row in zip(self.names, self.matrix_TT.tolist(), strict=True):
            writer.writerow([name, *("" if math.isnan(value) else repr(value) for value in row)])
        return text.getvalue()
