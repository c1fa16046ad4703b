"""One function from prompts to token ids and concept rows, for training, evaluation and serving alike.

A concept is written `[V]` ("the concept of the active adapter") or `<name>`; in the text that reaches the encoders the
profile's placeholder word stands in its place. The rows of the context that come from that word are the concept rows.

The context of SD3 is [CLIP rows | T5 rows]: both CLIP encoders share the first rows (channels concatenated), the T5
rows follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.concepts.texts import mentions, prompt_problem
from components.errors import InvalidInput


@dataclass(frozen=True)
class TokenizedPrompts:
    """Token ids of a batch of prompts.

    Attributes:
        clip_BN, clip_2_BN: ids of the two CLIP tokenizers, padded to their maximal length N.
        t5_BM: ids of T5, padded to the profile's max_sequence_length M; None for a family without T5.
        concept_rows: as in `TextEncoding`.
    """

    clip_BN: Tensor
    clip_2_BN: Tensor
    t5_BM: Tensor | None
    concept_rows: tuple[dict[str, tuple[int, ...]], ...]


class PromptTokenizer:
    """Prompts to token ids and concept rows.

    Args:
        clip, clip_2: the CLIP tokenizers.
        t5: the T5 tokenizer, or None.
        placeholder: the word that stands where a concept is meant: exactly one token of each CLIP tokenizer.
        max_sequence_length: rows of T5 context.

    Raises:
        InvalidInput: the placeholder is not one known token of the CLIP tokenizers.
    """

    def __init__(self, clip: Any, clip_2: Any, t5: Any | None, *, placeholder: str, max_sequence_length: int):
        self.clip, self.clip_2, self.t5 = clip, clip_2, t5
        self.placeholder, self.max_sequence_length = placeholder, max_sequence_length
        self.clip_length = int(clip.model_max_length)
        for tokenizer in (clip, clip_2):
            ids = tokenizer(placeholder, add_special_tokens=False).input_ids
            if len(ids) != 1 or ids[0] in (tokenizer.unk_token_id, tokenizer.eos_token_id):
                raise InvalidInput(
                    f"the placeholder {placeholder!r} is {len(ids)} tokens or unknown to the base's CLIP tokenizer",
                    field="base.placeholder",
                    mend="choose a rare word that is exactly one token",
                )
        self.t5_tokens = len(t5(placeholder, add_special_tokens=False).input_ids) if t5 is not None else 0

    @property
    def rows_per_mention(self) -> int:
        """R: one CLIP row and as many T5 rows as the placeholder has T5 tokens."""
        return 1 + self.t5_tokens

    def __call__(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Tokenize a batch.

        Raises:
            InvalidInput: a prompt is too long or holds what is no character, or a concept falls beyond the encoders'
                maximal length or is glued to other text.
        """
        for prompt in prompts:
            if problem := prompt_problem(prompt):
                raise InvalidInput(problem[0], field="prompt", mend=problem[1])
        texts, spans = zip(*(self._substitute(prompt) for prompt in prompts), strict=True)
        clip_BN, clip_hits = self._encode(self.clip, texts, spans, self.clip_length)
        clip_2_BN, clip_2_hits = self._encode(self.clip_2, texts, spans, self.clip_length)
        t5_BM, t5_hits = None, None
        if self.t5 is not None:
            t5_BM, t5_hits = self._encode(self.t5, texts, spans, self.max_sequence_length)
        rows = []
        for index, prompt in enumerate(prompts):
            if clip_hits[index] != clip_2_hits[index]:
                raise InvalidInput(f"the two CLIP tokenizers disagree on {prompt!r}", field="prompt")
            names = list(dict.fromkeys(name for name, _, _ in spans[index]))
            clip_rows = {name: [] for name in names}  # type: dict[str, list[int]]
            t5_rows = {name: [] for name in names}  # type: dict[str, list[int]]
            for mention, (name, _, _) in enumerate(spans[index]):
                self._expect(prompt, clip_hits[index][mention], 1, "CLIP", self.clip_length)
                clip_rows[name] += clip_hits[index][mention]
                if t5_hits is not None:
                    self._expect(prompt, t5_hits[index][mention], self.t5_tokens, "T5", self.max_sequence_length)
                    t5_rows[name] += [self.clip_length + position for position in t5_hits[index][mention]]
            rows.append({name: (*clip_rows[name], *t5_rows[name]) for name in names})
        return TokenizedPrompts(clip_BN, clip_2_BN, t5_BM, tuple(rows))

    def _substitute(self, prompt: str) -> tuple[str, list[tuple[str, int, int]]]:
        """The prompt with the placeholder in place of each concept, and (name, start, end) of each in that text."""
        parts: list[str] = []
        spans: list[tuple[str, int, int]] = []
        end, length = 0, 0
        for mention in mentions(prompt):
            between = prompt[end : mention.start]
            start = length + len(between)
            parts += [between, self.placeholder]
            spans.append((mention.name, start, start + len(self.placeholder)))
            length, end = start + len(self.placeholder), mention.end
        return "".join([*parts, prompt[end:]]), spans

    @staticmethod
    def _encode(
        tokenizer: Any, texts: Sequence[str], spans: Sequence[list[tuple[str, int, int]]], length: int
    ) -> tuple[Tensor, list[list[list[int]]]]:
        """Ids (B, length), and for each prompt and mention the positions of its tokens."""
        encoded = tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True
        )
        hits = [
            [
                [
                    position
                    for position, (first, last) in enumerate(offsets)
                    # whitespace that a tokenizer counts into the token does not matter, hence overlap
                    if first < end and last > start and first < last
                ]
                for _, start, end in spans[index]
            ]
            for index, offsets in enumerate(encoded["offset_mapping"])
        ]
        return torch.tensor(encoded["input_ids"], dtype=torch.long), hits

    @staticmethod
    def _expect(prompt: str, hits: list[int], count: int, encoder: str, length: int) -> None:
        if len(hits) == count:
            return
        if len(hits) < count:
            raise InvalidInput(
                f"the concept lies beyond the {length} tokens that {encoder} reads: {prompt[:200]!r}",
                field="prompt",
                mend="name the concept earlier or shorten the prompt",
            )
        raise InvalidInput(
            f"{encoder} reads the concept as {len(hits)} tokens, not {count}: {prompt[:200]!r}",
            field="prompt",
            mend="put spaces around the concept",
        )
