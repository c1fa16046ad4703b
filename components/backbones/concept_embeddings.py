"""Layer-wise concept embeddings (METHOD section 3, equation 7): at the input of transformer block l the context row at
each mention of the concept is replaced by the learnable Y^l.

Shape suffixes: N transformer blocks, R rows per mention (one of CLIP, the rest of T5), D inner width, B batch,
L context rows, K replaced rows in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class ConceptEmbeddings(nn.Module):
    """Y_NRD, kept in float32; N = 1: for the first block only.

    Args:
        initial_NRD: the initial value.
    """

    def __init__(self, initial_NRD: Tensor):
        super().__init__()
        self.Y_NRD = nn.Parameter(initial_NRD.detach().float().clone(), requires_grad=False)

    @property
    def rows(self) -> int:
        return self.Y_NRD.shape[1]


def embedding_index(position: int, count: int, rows: int) -> int:
    """Which of the R embeddings belongs to entry `position` of a concept's `count` rows in a `TextEncoding`.

    The rows of M = count / R mentions stand as M CLIP rows, then M groups of R - 1 T5 rows.
    """
    mentions = count // rows
    return 0 if position < mentions else 1 + (position - mentions) % (rows - 1)


@dataclass(frozen=True)
class Replacement:
    """Which context rows of a batch are replaced by which embeddings.

    Attributes:
        batch_K, row_K: where.
        index_K: which row of the concatenated embeddings.
        embeddings: the embeddings that are concatenated along R, in that order.
    """

    batch_K: Tensor
    row_K: Tensor
    index_K: Tensor
    embeddings: tuple[ConceptEmbeddings, ...]

    @staticmethod
    def plan(
        samples: Sequence[Sequence[tuple[ConceptEmbeddings, Sequence[int]]]], device: torch.device
    ) -> Replacement | None:
        """For each sample: embeddings with the context rows that stand for their concept. None if there is no row."""
        known: dict[ConceptEmbeddings, int] = {}
        width = 0
        batch, row, index = [], [], []
        for number, sample in enumerate(samples):
            for embeddings, rows in sample:
                if embeddings not in known:
                    known[embeddings], width = width, width + embeddings.rows
                if len(rows) % embeddings.rows:
                    raise ValueError(f"{len(rows)} concept rows for embeddings of {embeddings.rows} rows per mention")
                for position, where in enumerate(rows):
                    batch.append(number)
                    row.append(where)
                    index.append(known[embeddings] + embedding_index(position, len(rows), embeddings.rows))
        if not batch:
            return None
        where_3K = torch.tensor([batch, row, index], device=device)
        return Replacement(where_3K[0], where_3K[1], where_3K[2], tuple(known))

    def apply(self, block: int, context_BLD: Tensor) -> Tensor:
        """The context with the rows replaced; out of place, differentiable in both.

        Embeddings for the first block only leave the rows of later blocks as they are.
        """
        batch_K, row_K, index_K = self.batch_K, self.row_K, self.index_K
        acting = [embeddings for embeddings in self.embeddings if block < len(embeddings.Y_NRD)]
        if not acting:
            return context_BLD
        if len(acting) < len(self.embeddings):
            rows = [embeddings.rows for embeddings in self.embeddings]
            whose = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(index_K.device)
            acts = torch.tensor([embeddings in acting for embeddings in self.embeddings], device=index_K.device)[whose]
            kept_K = acts[index_K]
            batch_K, row_K, index_K = batch_K[kept_K], row_K[kept_K], (acts.cumsum(0) - 1)[index_K[kept_K]]
        Y_RD = torch.cat([embeddings.Y_NRD[block] for embeddings in acting])
        # embedding and a non-accumulating index_put: both have deterministic gradients
        values_KD = nn.functional.embedding(index_K, Y_RD).to(context_BLD.dtype)
        return context_BLD.index_put((batch_K, row_K), values_KD)


class Hooks:
    """Forward pre-hooks on the transformer's blocks that replace, or record, context rows.

    Nothing happens outside of `replacing` and `recording`.
    """

    def __init__(self, blocks: Sequence[nn.Module]):
        self._replacement: Replacement | None = None
        self._record: Callable[[int, Tensor], None] | None = None
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._hook(number), with_kwargs=True)

    def _hook(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._replacement is None and self._record is None:
                return None
            # gradient checkpointing passes (hidden_states, encoder_hidden_states, ...) by position
            context_BLD = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
            if self._record is not None:
                self._record(number, context_BLD)
            if self._replacement is None:
                return None
            context_BLD = self._replacement.apply(number, context_BLD)
            if "encoder_hidden_states" in kwargs:
                return args, {**kwargs, "encoder_hidden_states": context_BLD}
            return (args[0], context_BLD, *args[2:]), kwargs

        return hook

    @property
    def current(self) -> Replacement | None:
        return self._replacement

    @contextmanager
    def replacing(self, replacement: Replacement | None) -> Iterator[None]:
        """Within, every forward pass replaces these rows."""
        before, self._replacement = self._replacement, replacement
        try:
            yield
        finally:
            self._replacement = before

    @contextmanager
    def recording(self, record: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Within, every block's context input is handed to `record(block, context_BLD)`, before any replacement."""
        before, self._record = self._record, record
        try:
            yield
        finally:
            self._record = before
