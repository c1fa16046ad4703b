"""The text side of SD3: two CLIP encoders with projection and T5.

Shape suffixes: B batch, N CLIP rows, M T5 rows, D context width, P pooled width.
"""

from __future__ import annotations

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
        InvalidInput: the placeholder is not one token.
    """
    t5 = has_part(folder, "text_encoder_3")
    return load_tokenizers(folder, placeholder=placeholder, max_sequence_length=max_sequence_length, t5=t5)


def load_tokenizers(folder: Path, *, placeholder: str, max_sequence_length: int, t5: bool) -> PromptTokenizer:
    """The tokenizers below a folder.

    Args:
        t5: whether the family has T5.

    Raises:
        InvalidInput: the placeholder is not one token.
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    clip_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    t5_tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer_3") if t5 else None
    return PromptTokenizer(clip, clip_2, t5_tokenizer, placeholder=placeholder, max_sequence_length=max_sequence_length)


def clip_config(folder: Path, part: str, eos_token_id: int) -> Any:
    """The configuration of a CLIP encoder with the tokenizer's end of text, at which it has to pool.

    The configurations of SD3 state the legacy value 2, which makes transformers pool at the largest token id. That is
    the end of text only as long as no token has a larger id: with an added one, the pooled vector would silently be
    taken there. So the real id is set before the model is built.

    Raises:
        InvalidInput: another id is stated, so that encoder and tokenizer do not belong together.
    """
    from transformers import CLIPTextConfig

    config = CLIPTextConfig.from_pretrained(folder / part)
    if config.eos_token_id not in (LEGACY_EOS, eos_token_id):
        raise InvalidInput(
            f"eos_token_id is {config.eos_token_id}, the tokenizer's end of text is {eos_token_id}",
            file=folder / part / "config.json",
            field="eos_token_id",
            mend=f"set eos_token_id to {eos_token_id}: otherwise CLIP pools at the wrong token",
        )
    config.eos_token_id = eos_token_id
    return config


class TextEncoders:
    """Encodes prompts as `StableDiffusion3Pipeline.encode_prompt` does.

    Args:
        folder: the base folder.
        tokenizer: its tokenizers.
        context_width: D, the transformer's joint_attention_dim.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PromptTokenizer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context_width: int,
    ):
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        def load(kind: Any, part: str, **options: Any) -> Any:
            model = kind.from_pretrained(folder / part, dtype=dtype, local_files_only=True, **options)
            return model.to(device).eval().requires_grad_(False)

        def load_clip(part: str, eos_token_id: int) -> Any:
            model = load(CLIPTextModelWithProjection, part, config=clip_config(folder, part, eos_token_id))
            if model.text_model.eos_token_id != eos_token_id:
                raise RuntimeError(f"{part} pools at token {model.text_model.eos_token_id}, not at {eos_token_id}")
            return model

        self.tokenizer = tokenizer
        self.clip = load_clip("text_encoder", tokenizer.clip.eos_token_id)
        self.clip_2 = load_clip("text_encoder_2", tokenizer.clip_2.eos_token_id)
        self.t5 = load(T5EncoderModel, "text_encoder_3") if has_part(folder, "text_encoder_3") else None
        self.device, self.dtype, self.context_width = device, dtype, context_width

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextEncoding:
        """Context [CLIP rows, zero-padded in width | T5 rows] and the pooled vectors of both CLIP encoders.

        A family without T5 gets `max_sequence_length` zero rows, as in diffusers' pipeline.
        """
        tokens = self.tokenizer(prompts)
        clip = self.clip(tokens.clip_BN.to(self.device), output_hidden_states=True)
        clip_2 = self.clip_2(tokens.clip_2_BN.to(self.device), output_hidden_states=True)
        clip_BND = torch.cat([clip.hidden_states[-2], clip_2.hidden_states[-2]], dim=-1)
        clip_BND = torch.nn.functional.pad(clip_BND, (0, self.context_width - clip_BND.shape[-1]))
        if self.t5 is not None and tokens.t5_BM is not None:
            t5_BMD: Tensor = self.t5(tokens.t5_BM.to(self.device))[0].to(self.dtype)
        else:
            shape = (len(prompts), self.tokenizer.max_sequence_length, self.context_width)
            t5_BMD = torch.zeros(shape, device=self.device, dtype=self.dtype)
        context_BLD = torch.cat([clip_BND.to(self.dtype), t5_BMD], dim=-2)
        pooled_BP = torch.cat([clip.text_embeds, clip_2.text_embeds], dim=-1).to(self.dtype)
        return TextEncoding(context_BLD, pooled_BP, tokens.concept_rows)
