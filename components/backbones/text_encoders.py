"""The text side of SD3: two CLIP encoders with projection and T5.

Shape suffixes: B batch, N CLIP rows, M T5 rows, D context width, P pooled width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.backbones.base_folder import has_part
from components.backbones.interface import TextEncoding
from components.backbones.prompts import PromptTokenizer
from components.errors import InvalidInput

LEGACY_EOS = 2
"""With this `eos_token_id` transformers pools CLIP at the largest id instead of at the end of the text."""


def load_tokenizer(folder: Path, *, placeholder: str, max_sequence_length: int) -> PromptTokenizer:
    """The tokenizers of a base folder.

    Raises:
        InvalidInput: the placeholder is not one token, or the pooling trap is open (see `check_pooling`).
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    clip_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    t5 = AutoTokenizer.from_pretrained(folder / "tokenizer_3") if has_part(folder, "text_encoder_3") else None
    for part, tokenizer in (("text_encoder", clip), ("text_encoder_2", clip_2)):
        check_pooling(folder / part / "config.json", tokenizer.eos_token_id)
    return PromptTokenizer(clip, clip_2, t5, placeholder=placeholder, max_sequence_length=max_sequence_length)


def check_pooling(config: Path, eos_token_id: int) -> None:
    """The CLIP model pools at the tokenizer's end of text.

    transformers treats `eos_token_id == 2` as a legacy configuration and pools at the largest token id, which is the
    end of text only as long as no token has a larger one: with an added token the pooled vector would silently be
    taken there. So the configuration has to name the real id.

    Raises:
        InvalidInput: it does not.
    """
    stated = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id", 49407)  # transformers' default
    if stated == LEGACY_EOS or stated != eos_token_id:
        raise InvalidInput(
            f"eos_token_id is {stated}, the tokenizer's end of text is {eos_token_id}",
            file=config,
            field="eos_token_id",
            mend=f"set eos_token_id to {eos_token_id}: otherwise CLIP pools at the wrong token",
        )


class TextEncoders:
    """Encodes prompts as `StableDiffusion3Pipeline.encode_prompt` does.

    Args:
        folder: the base folder.
        context_width: D, the transformer's joint_attention_dim.
    """

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype, context_width: int):
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        def load(kind: Any, part: str) -> Any:
            model = kind.from_pretrained(folder / part, dtype=dtype, local_files_only=True)
            return model.to(device).eval().requires_grad_(False)

        self.clip = load(CLIPTextModelWithProjection, "text_encoder")
        self.clip_2 = load(CLIPTextModelWithProjection, "text_encoder_2")
        self.t5 = load(T5EncoderModel, "text_encoder_3") if has_part(folder, "text_encoder_3") else None
        self.device, self.dtype, self.context_width = device, dtype, context_width

    @torch.no_grad()
    def __call__(self, tokenizer: PromptTokenizer, prompts: Sequence[str]) -> TextEncoding:
        """Context [CLIP rows, zero-padded in width | T5 rows] and the pooled vectors of both CLIP encoders.

        A family without T5 gets `max_sequence_length` zero rows, as in diffusers' pipeline.
        """
        tokens = tokenizer(prompts)
        clip = self.clip(tokens.clip_BN.to(self.device), output_hidden_states=True)
        clip_2 = self.clip_2(tokens.clip_2_BN.to(self.device), output_hidden_states=True)
        clip_BND = torch.cat([clip.hidden_states[-2], clip_2.hidden_states[-2]], dim=-1)
        clip_BND = torch.nn.functional.pad(clip_BND, (0, self.context_width - clip_BND.shape[-1]))
        if self.t5 is not None and tokens.t5_BM is not None:
            t5_BMD: Tensor = self.t5(tokens.t5_BM.to(self.device))[0].to(self.dtype)
        else:
            shape = (len(prompts), tokenizer.max_sequence_length, self.context_width)
            t5_BMD = torch.zeros(shape, device=self.device, dtype=self.dtype)
        context_BLD = torch.cat([clip_BND.to(self.dtype), t5_BMD], dim=-2)
        pooled_BP = torch.cat([clip.text_embeds, clip_2.text_embeds], dim=-1).to(self.dtype)
        return TextEncoding(context_BLD, pooled_BP, tokens.concept_rows)
